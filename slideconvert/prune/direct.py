"""Linears that need no calibration: prune by the weights themselves, round to nearest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..core.patterns import BlockPattern, Pattern
from ..core.quantize import QuantizedWeight, Weight, quantize
from ..core.schemes import Scheme
from ..core.select import apply_mask
from ..core.ternary import recode
from ..core.weights import floats, values
from . import METHODS


def compress_directly(
    source: Weight, method: str, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> tuple[Weight, Weight]:
    """Some rows of a weight -> pruned, and as stored. method "" prunes nothing.

    Codes stay codes, with their scale, but ternary ones, which become those of `scheme`. latent: the same rows of what
    ternary codes were rounded from: of codes of equal size those with the smallest latent weights go.
    """
    pruned = weight = source
    mask = METHODS[method].mask if method else None
    if mask:
        assert isinstance(pattern, BlockPattern)
        keep = mask(_sizes(source) if latent is None else latent, pattern)
        survivors = apply_mask(values(source), keep)
        pruned = weight = survivors if isinstance(source, Tensor) else replace(source, codes=survivors)
    if isinstance(weight, QuantizedWeight) and weight.scheme.ternary:
        weight = recode(weight, scheme)
    elif scheme.quantized and isinstance(weight, Tensor):
        weight = quantize(weight, scheme)
    return pruned, weight


def _sizes(source: Weight) -> Tensor:
    """What is compared among the weights of a row: the floats, or codes that have the row's scale in common."""
    if isinstance(source, QuantizedWeight) and source.scheme.grouped:
        return floats(source)
    return values(source)
