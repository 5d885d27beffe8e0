"""What the backends for NVIDIA GPUs share: a custom operator, so that torch.compile takes a call as one step."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .base import Backend, LinearSpec

NAMESPACE = __name__.replace(".", "_")
"""Of the operator: the kernels of a package and those of a checkpoint may live in one process."""


class CudaBackend(Backend):
    """A backend whose work is done by `run`. One object serves all linears of a shape: get it from `shared`."""

    def run(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] -> [..., N]."""
        raise NotImplementedError

    def run_there(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        """`run` with the linear's device as the current one: a model may be spread over several, and kernels are
        started on the current one. ValueError if x is elsewhere."""
        if x.get_device() != self.device.index:
            raise ValueError(f"the input of {self.spec} is on {x.device}, its weight on {self.device}")
        if torch._C._cuda_getDevice() == self.device.index:
            return self.run(x, operand, weight_scale, bias)
        with torch.cuda.device(self.device):
            return self.run(x, operand, weight_scale, bias)

    def __call__(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            spec = self.spec
            fp8 = spec.dtype == torch.float8_e4m3fn
            return _OPERATOR(x, operand, weight_scale, bias, spec.rows, spec.columns, spec.length or 0, fp8, self.name)
        return self.run_there(x, operand, weight_scale, bias)


_SHARED: dict[tuple[str, LinearSpec, torch.device], Backend] = {}


def shared(kind: type[Backend], spec: LinearSpec, device: torch.device) -> Backend:
    """The one backend of its kind in this process, so that plans and compiled kernels are made once."""
    key = (kind.name, spec, device)
    if key not in _SHARED:
        _SHARED[key] = kind(spec, device)
    return _SHARED[key]


def missing_triton() -> str:
    """A refusal if Triton is not there, else ""."""
    return "" if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"


def indexed(device: torch.device) -> torch.device:
    """cuda -> cuda:0, or whichever is current."""
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def _run(
    x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None,
    rows: int, columns: int, length: int, fp8: bool, backend: str,
) -> Tensor:  # fmt: skip
    from .choose import BACKENDS

    spec = LinearSpec(rows, columns, length or None, torch.float8_e4m3fn if fp8 else torch.int8)
    one = shared(BACKENDS[backend], spec, x.device)
    assert isinstance(one, CudaBackend)
    return one.run_there(x, operand, weight_scale, bias)


def _shape(
    x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None,
    rows: int, columns: int, length: int, fp8: bool, backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], rows))


_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_LIBRARY.define(
    "linear(Tensor x, Tensor operand, Tensor weight_scale, Tensor? bias, int rows, int columns, int length, bool fp8, "
    "str backend) -> Tensor"
)
_LIBRARY.impl("linear", _run, "CUDA")
torch.library.register_fake(f"{NAMESPACE}::linear", _shape, lib=_LIBRARY)
_OPERATOR = getattr(torch.ops, NAMESPACE).linear.default
