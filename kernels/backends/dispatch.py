"""Sparse and dense prepared weights in memory, each used where it was measured to be the faster one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..slide_spec import SlideSpec, SlideWeight
from .base import Prepared, shared
from .benchmark import compare
from .cuda import CudaBackend
from .cusparselt import Cusparselt
from .dense import Dense


class Dispatch(CudaBackend):
    """Sparse or dense, call by call. Costs the bytes of the dense codes on top of those of the sparse ones."""

    name = "both"
    runs = SlideSpec
    on_request = True

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._sparse, self._dense = (shared(kind, spec, self.device) for kind in (Cusparselt, Dense))
        self.comparison = compare(self._sparse, self._dense)

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        return Cusparselt.refusal(spec, device) or Dense.refusal(spec, device)

    @classmethod
    def drawback(cls, spec: SlideSpec) -> str:
        return f"keeps the dense codes as well, {spec.rows * spec.columns / 1e6:.1f} MB more"

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """Dense codes, sparse codes, scale."""
        sparse, scale = self._sparse.prepare(weight)
        return self._dense.prepare(weight)[0], sparse, scale

    def weight(self, prepared: Prepared) -> SlideWeight:
        dense, _, scale = prepared
        weight: SlideWeight = self._dense.weight((dense, scale))
        return weight

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        dense, sparse, scale = prepared
        if self.comparison.speedup(x.numel() // self.spec.columns) >= 1:
            return self._sparse(x, (sparse, scale), bias)
        return self._dense(x, (dense, scale), bias)
