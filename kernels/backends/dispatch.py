"""Sparse and dense prepared weights in memory, each used where it was measured to be the faster one."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Codes, LinearSpec
from .benchmark import compare
from .cuda import CudaBackend, indexed, shared
from .cusparselt import Cusparselt
from .dense import Dense


class Dispatch(CudaBackend):
    """Sparse or dense, call by call. Costs the bytes of the dense codes on top of those of the sparse ones."""

    name = "both"

    def __init__(self, spec: LinearSpec, device: torch.device) -> None:
        super().__init__(spec, indexed(device))
        self._sparse, self._dense = (shared(kind, spec, self.device) for kind in (Cusparselt, Dense))
        self.comparison = compare(self._sparse, self._dense)
        self._end = spec.rows * spec.columns
        self._start = -(-self._end // 256) * 256  # an address the sparse half can stand at

    @classmethod
    def refusal(cls, spec: LinearSpec, device: torch.device) -> str:
        return Cusparselt.refusal(spec, device) or Dense.refusal(spec, device)

    def prepare(self, codes: Codes) -> Tensor:
        parts = self._dense.prepare(codes).view(torch.uint8).flatten(), self._sparse.prepare(codes)
        operand = torch.zeros(self._start + parts[1].numel(), dtype=torch.uint8, device=self.device)
        operand[: self._end], operand[self._start :] = parts
        return operand

    def codes(self, operand: Tensor) -> Codes:
        return self._dense.codes(self._halves(operand)[0])

    def _halves(self, operand: Tensor) -> tuple[Tensor, Tensor]:
        dense = operand[: self._end].view(torch.int8).view(self.spec.rows, self.spec.columns)
        return dense, operand[self._start :]

    def run(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        dense, sparse = self._halves(operand)
        if self.comparison.speedup(x.numel() // self.spec.columns) >= 1:
            return self._sparse(x, sparse, weight_scale, bias)
        return self._dense(x, dense, weight_scale, bias)
