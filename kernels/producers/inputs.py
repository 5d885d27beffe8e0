"""The inputs of a producer as kernels take them."""

from __future__ import annotations

from torch import Tensor

from ..launch import ALIGNMENT, aligned, empty
from .reference import SUM, Producer

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def readable(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None
) -> tuple[Inputs, Tensor | None]:
    """x, other, weight and the sum as kernels on the current device take them, x in the place of what is not used; and
    the sum, if there is one."""
    x = apart(x)
    total = empty(x.shape[0], x.shape[1], x.dtype) if producer.element == SUM else None
    second = x if other is None else apart(other)
    return (x, second, x if weight is None else aligned(weight), x if total is None else total), total


def apart(x: Tensor) -> Tensor:
    """x [M, K] with rows at addresses that are multiples of 16, as contiguous rows of odd lengths need not be: itself,
    as a rule."""
    between, step = x.stride()
    fits = step == 1 and between * x.itemsize % ALIGNMENT == 0 and x.data_ptr() % ALIGNMENT == 0
    return x if fits else aligned(x)
