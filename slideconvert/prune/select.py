"""The pattern law: which weights of a group go, given a score for each.

Groups are L consecutive input columns at absolute positions 0, L, 2L … of a row. In every group the two
lowest scores go. Zeros already there must carry the lowest score, 0, and so count first; the missing columns
of a ragged tail are zeros too, so a tail of L - 1 columns loses at most one weight and a shorter one none.
Ties break by column index, the lower one goes: the result is the same on every device and in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PatternError
from ..patterns import ZEROS, Pattern
from ..planes import bits, from_planes, row_blocks, to_planes

_INDEX_BITS = 4  # a column's index inside its group, 0 … 15


def keep_mask(score: Tensor, pattern: Pattern) -> Tensor:
    """score [out, in], floating point, >= 0, not NaN -> mask [out, in] bool, False where the weight goes.

    Exactly two are False in each full group. 2:inf keeps everything. float64 scores are refused (ValueError):
    their bits leave no room for the tie-break.
    """
    if score.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"scores must be float32, float16 or bfloat16, not {score.dtype}")
    keep = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    if pattern.prunes:
        for rows in row_blocks(score):
            keep[rows] = _keep_block(score[rows], pattern)
    return keep


def _keep_block(score: Tensor, pattern: Pattern) -> Tensor:
    # The bits of a float >= 0 order like the float itself, so (bits, column index) as one integer orders
    # scores with ties already broken, and no two keys of a group are equal.
    planes = bits(to_planes(score, pattern.group))
    wide = torch.int32 if planes.dtype == torch.int16 else torch.int64
    keys = [(plane.to(wide) << _INDEX_BITS) | column for column, plane in enumerate(planes)]
    lowest, second = torch.minimum(keys[0], keys[1]), torch.maximum(keys[0], keys[1])
    for key in keys[2:]:
        second = torch.minimum(second, torch.maximum(lowest, key))
        lowest = torch.minimum(lowest, key)
    return from_planes([key > second for key in keys], score.shape[1])


def apply_mask(values: Tensor, keep: Tensor) -> Tensor:
    """Values where kept, +0 elsewhere; a kept -0 becomes +0 as well, so that every zero is the byte 0."""
    raw = bits(values)
    out = raw * keep
    negative_zero = torch.iinfo(raw.dtype).min if values.is_floating_point() else None
    if negative_zero is not None:
        out.masked_fill_(out == negative_zero, 0)
    return out.view(values.dtype)


def check_pattern(values: Tensor, pattern: Pattern, where: str) -> None:
    """Raise PatternError with row, column and count at the first group of [out, in] with too many non-zeros."""
    if not pattern.prunes:
        return
    for rows in row_blocks(values):
        nonzeros = (to_planes(bits(values[rows]), pattern.group) != 0).sum(dim=0, dtype=torch.int16)
        over = nonzeros > pattern.most_nonzeros
        if over.any():
            row, group = (int(index) for index in over.nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, columns {group * pattern.group} … "
                f"{min((group + 1) * pattern.group, values.shape[1]) - 1} hold {int(nonzeros[row, group])} "
                f"non-zeros, {pattern} allows {pattern.most_nonzeros} ({ZEROS} zeros in {pattern.group}); "
                f"{int(over.sum())} such groups in these rows",
                hint="prune first (slideconvert sparsify) or name the pattern the weights really have",
            )
