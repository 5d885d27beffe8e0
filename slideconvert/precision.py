"""How exactly float32 matrix products are computed on a GPU: everything here that runs a model or solves says which.

TF32 keeps ten bits of mantissa and is several times as fast. Hidden states bear that: models run in bfloat16, with
seven. Gram matrices and factors do not: their small eigenvalues would drown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside: statistics and solvers."""
    yield from _with("highest")


@contextmanager
def model_precision() -> Iterator[None]:
    """TF32 inside: running and training layers."""
    yield from _with("high")


def _with(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
