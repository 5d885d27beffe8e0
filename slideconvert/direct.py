"""Linears that need no calibration: prune by the weights themselves, round to nearest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .measure import values
from .patterns import Pattern
from .prune import METHODS
from .prune.select import apply_mask
from .quantize import Weight, quantize
from .schemes import Scheme


def compress_directly(source: Weight, method: str, pattern: Pattern, scheme: Scheme) -> tuple[Weight, Weight]:
    """Some rows of a weight -> pruned, and as stored. Codes stay codes, with their scale. method "" prunes nothing."""
    pruned = weight = source
    mask = METHODS[method].mask if method else None
    if mask:
        survivors = apply_mask(values(source), mask(values(source), pattern))
        pruned = weight = survivors if isinstance(source, Tensor) else replace(source, codes=survivors)
    if scheme.quantized and isinstance(weight, Tensor):
        weight = quantize(weight, scheme)
    return pruned, weight
