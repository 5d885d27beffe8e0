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
    yield from _with(False)


@contextmanager
def model_precision() -> Iterator[None]:
    """TF32 inside, on GPUs that have it: running and training layers. A CPU computes as it always does."""
    yield from _with(True)


def _with(tf32: bool) -> Iterator[None]:
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = tf32
    try:
        yield
    finally:
        products.allow_tf32 = before
