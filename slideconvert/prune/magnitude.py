"""Magnitude pruning: prune the weights with the smallest |w|; the others stay unchanged."""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import Pattern


def magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """weight [out, in] float, or int8 / float8 codes -> keep mask [out, in] bool.

    Codes are compared without their scale: it is the same for a whole row, so it cannot change the order.
    """
    return pattern.select_largest(weight if weight.dtype.itemsize > 1 else weight.half())  # float16 holds every code
