"""Compression without calibration: prune by the weights alone, and round to nearest."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..core.patterns import Pattern
from ..core.quantize import Weight
from ..core.schemes import Scheme
from ..core.select import apply_mask
from ..core.weights import comparable, values
from . import METHODS


def compress_directly(
    source: Weight, method: str, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> tuple[Weight, Weight]:
    """source [rows, in], some rows of a weight -> the rows after pruning, and as stored in `scheme`.

    method: a method without calibration; "" prunes nothing. Codes keep their scale, except ternary ones, which become
    codes of `scheme`. latent [rows, in] float32: the latent weights of ternary codes; if given, the weights of a block
    are ranked by them and not by the codes.
    """
    pruned = weight = source
    mask = METHODS[method].mask if method else None
    if mask:
        keep = mask(comparable(source) if latent is None else latent, pattern)
        kept = apply_mask(values(source), keep)
        pruned = weight = kept if isinstance(source, Tensor) else replace(source, codes=kept)
    return pruned, scheme.store(weight)
