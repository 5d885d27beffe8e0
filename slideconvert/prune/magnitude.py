"""Magnitude pruning: the weights of smallest |w| are pruned, the others stay as they are."""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import Pattern


def magnitude(weight: Tensor, pattern: Pattern) -> Tensor:
    """weight [out, in] float, or int8 / float8 codes -> keep mask [out, in] bool.

    Codes are compared by the value they stand for; the scale is one per row and cannot change the order.
    """
    return pattern.select_largest(weight if weight.dtype.itemsize > 1 else weight.half())  # float16 holds every code
