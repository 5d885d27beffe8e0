"""The precision in which models run and matrices are multiplied; all code that does either chooses it here.

Models run in bfloat16, as they are served, on devices that multiply it fast: linears and attention take and give
bfloat16, sums within them and the residual stream are float32. Training runs likewise, with weights and gradients in
float32; what is measured runs in float32 (TF32 on a GPU).
Gram matrices and factors are float32: lower precision would lose their small eigenvalues. Products of bfloat16 inputs
are exact in TF32 and in bfloat16 mode, and sums are float32, so these modes lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import pick
from .choices import PRECISIONS

FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""Instructions of a CPU that multiply bfloat16 several times as fast as float32."""


def running_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype in which a device runs models. auto: bfloat16, or float32 where that is no faster.

    InputError for other names.
    """
    if pick(precision, PRECISIONS, "precision") != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(instruction) for instruction in FAST_BFLOAT16)
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 as it is: solvers, and sums of float32 inputs."""
    yield from _with("highest")


@contextmanager
def exact_for_bfloat16() -> Iterator[None]:
    """The fastest products of float32 matrices that hold bfloat16 numbers, none of them rounded, sums in float32."""
    yield from _with("medium" if torch.backends.mkldnn.is_available() else "high")


@contextmanager
def model_precision() -> Iterator[None]:
    """TF32 inside, on GPUs that have it: layers that run in float32. A CPU computes as it always does."""
    yield from _with("high" if torch.cuda.is_available() else "highest")


@contextmanager
def running(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Layers run in `dtype`; float32 as in model_precision."""
    reduced = dtype != torch.float32
    # Weights are replaced repeatedly: a cache would keep the old ones.
    with model_precision(), torch.autocast(device.type, dtype, enabled=reduced, cache_enabled=False):
        yield


def _with(products: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
