"""What the backends for NVIDIA GPUs share."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from .base import Backend, Prepared


class CudaBackend(Backend):
    """A backend whose work is done by `launch`, with the linear's device as the current one."""

    def __init__(self, spec: Any, device: torch.device) -> None:
        super().__init__(spec, indexed(device))

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x [..., K] on the current device -> [..., N]."""
        raise NotImplementedError

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        # A model may be spread over several devices, and kernels are started on the current one.
        if x.get_device() != self.device.index:
            raise ValueError(f"the input of {self.spec} is on {x.device}, its weight on {self.device}")
        if torch._C._cuda_getDevice() == self.device.index:
            return self.launch(x, prepared, bias)
        with torch.cuda.device(self.device):
            return self.launch(x, prepared, bias)


def missing_triton() -> str:
    """A refusal if Triton is not there, else ""."""
    return "" if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"


def indexed(device: torch.device) -> torch.device:
    """cuda -> cuda:0, or whichever is current; others as they are."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
