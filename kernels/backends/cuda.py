"""What the backends for NVIDIA GPUs share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Backend, Prepared

Product = Callable[[Tensor, Any, Tensor | None], Tensor]
"""Of activations, a prepared weight and a bias."""


class CudaBackend(Backend):
    """A backend whose work is done by `launch`, with the linear's device as the current one."""

    def __init__(self, spec: Any, device: torch.device) -> None:
        super().__init__(spec, indexed(device))

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x [..., K] on the current device -> [..., N]."""
        raise NotImplementedError

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """`run_codes` with as many rows as the operand has, on the current device."""
        raise NotImplementedError

    def by_rows(self, op: Product, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x [..., K] -> [..., N], by an operation on activations [M, K]."""
        if x.dim() == 2 and x.shape[1] == self.spec.columns:  # as servers pass it; views take microseconds
            return op(x, prepared, bias)
        out = op(x.reshape(-1, self.spec.columns), prepared, bias)
        return out.view(*x.shape[:-1], self.spec.rows)

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        # A model may be spread over several devices, and kernels are started on the current one.
        if self._elsewhere(x):
            with torch.cuda.device(self.device):
                return self.launch(x, prepared, bias)
        return self.launch(x, prepared, bias)

    def run_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        wanted = self.operand(scale.shape[0])
        assert wanted is not None
        if codes.shape[0] > wanted[1]:
            codes = codes[: wanted[1]]
        if self._elsewhere(codes):
            with torch.cuda.device(self.device):
                return self.launch_codes(codes, scale, prepared, bias, dtype)
        return self.launch_codes(codes, scale, prepared, bias, dtype)

    def _elsewhere(self, given: Tensor) -> bool:
        """Whether another device is the current one. ValueError if the input is on another."""
        if given.get_device() != self.device.index:
            raise ValueError(f"the input of {self.spec} is on {given.device}, its weight on {self.device}")
        return bool(torch._C._cuda_getDevice() != self.device.index)


def missing_triton() -> str:
    """A refusal if Triton is not there, else ""."""
    return "" if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"


def indexed(device: torch.device) -> torch.device:
    """cuda -> cuda:0, or whichever is current; others as they are."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
