"""Magnitude pruning: the two weights of smallest |w| in each group go, the others stay as they are."""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import BlockPattern


def magnitude(weight: Tensor, pattern: BlockPattern) -> Tensor:
    """weight [out, in] float, or int8 / float8 codes -> keep mask [out, in] bool.

    Codes are compared by the value they stand for; the scale is one per row and cannot change the order.
    """
    score = weight if weight.dtype.itemsize > 1 else weight.half()  # every 8-bit code is exact in float16
    return pattern.select(score.abs())
