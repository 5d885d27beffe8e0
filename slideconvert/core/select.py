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
from ..kernels.planes import bits, from_planes, negative, nonzero, row_blocks, to_planes, without_negative_zero
from .patterns import ZEROS, AnyPattern, GroupPattern, Pattern


def keep_mask(score: Tensor, pattern: Pattern) -> Tensor:
    """score [out, in], float32, float16 or bfloat16, >= 0, not NaN -> mask [out, in] bool, False where it goes.

    Exactly two are False in each full group. 2:inf keeps everything.
    """
    keep = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    if pattern.prunes and score.is_cuda and score.shape[1] <= pattern.group:
        # One group at a time is the sweep's way, and a GPU spends all its time on starting small kernels: few instead.
        goes = max(0, ZEROS - (pattern.group - score.shape[1]))
        keep.scatter_(1, score.sort(dim=1, stable=True).indices[:, :goes], False)
    elif pattern.prunes:
        for rows in row_blocks(score):
            keep[rows] = _keep_block(score[rows], pattern)
    return keep


def _keep_block(score: Tensor, pattern: Pattern) -> Tensor:
    # The bits of a float >= 0, read as an integer, order like the float itself (and -0 is cleared by the sign bit).
    planes = to_planes(bits(score) & torch.iinfo(bits(score).dtype).max, pattern.group)
    lowest, second = torch.minimum(planes[0], planes[1]), torch.maximum(planes[0], planes[1])
    for plane in planes[2:]:
        second = torch.minimum(second, torch.maximum(lowest, plane))
        lowest = torch.minimum(lowest, plane)
    # Everything below `second` goes (at most one can be). Of those equal to it, as many as are missing to two,
    # from the left: one, or two if the lowest score is the same.
    missing = (ZEROS + negative(lowest - second)).to(torch.int8)
    keep = []
    for plane in planes:
        ahead = second - plane  # both are >= 0, so this cannot overflow
        above, below = negative(ahead).to(torch.int8), negative(-ahead).to(torch.int8)
        tie = ~(above | below)
        spared = tie & ~negative(-missing)  # a tie when none are missing any more
        missing += tie
        keep.append((above | spared) & 1)
    return from_planes(keep)[:, : score.shape[1]].view(torch.bool)


def apply_mask(values: Tensor, keep: Tensor) -> Tensor:
    """Values where kept, +0 elsewhere; a kept -0 becomes +0 as well, so that every zero is all-zero bytes."""
    out = torch.empty_like(values)
    for rows in row_blocks(values):
        out[rows] = without_negative_zero((bits(values[rows]) * keep[rows]).view(values.dtype))
    return out


def legal_groups(values: Tensor, pattern: Pattern) -> int:
    """How many groups of [out, in] have the zeros that the pattern asks for."""
    found = [_nonzeros(values[rows], pattern) <= pattern.most_nonzeros for rows in row_blocks(values)]
    return sum(int(block.count_nonzero()) for block in found)


def _nonzeros(values: Tensor, pattern: Pattern) -> Tensor:
    """Non-zeros of every group of some rows [rows, in] -> [rows, groups] int8."""
    taken = torch.zeros((), dtype=torch.int8, device=values.device)
    for plane in to_planes(bits(without_negative_zero(values)), pattern.group):
        taken = taken - nonzero(plane).to(torch.int8)
    return taken


def check_pattern(values: Tensor, pattern: AnyPattern, where: str) -> None:
    """Raise PatternError with row, column and count at the first group of [out, in] with too many non-zeros; of a group
    pattern, whose law is of the whole linear, with the numbers of groups."""
    if not pattern.prunes:
        return
    if isinstance(pattern, GroupPattern):
        _check_groups(values, pattern, where)
        return
    for rows in row_blocks(values):
        taken = _nonzeros(values[rows], pattern)
        if int(taken.amax()) <= pattern.most_nonzeros:
            continue
        over = taken > pattern.most_nonzeros
        row, group = (int(index) for index in over.nonzero()[0])
        raise PatternError(
            f"{where}: row {rows.start + row}, columns {group * pattern.group} … "
            f"{min((group + 1) * pattern.group, values.shape[1]) - 1} hold {int(taken[row, group])} "
            f"non-zeros, {pattern} allows {pattern.most_nonzeros} ({ZEROS} zeros in {pattern.group}); "
            f"{int(over.sum())} such groups in these rows",
            hint="prune first (slideconvert sparsify) or name the pattern the weights really have",
        )


def _check_groups(values: Tensor, pattern: GroupPattern, where: str) -> None:
    shape = (values.shape[0], values.shape[1])
    found = values.unflatten(1, (-1, pattern.size)).ne(0).any(2).sum(1)
    if int(found.sum()) > pattern.kept(shape):
        raise PatternError(
            f"{where}: {int(found.sum())} groups of {pattern.size} are not zero, {pattern} allows "
            f"{pattern.kept(shape)}",
            hint="prune first (slideconvert sparsify) or name the sparsity that the weights really have",
        )
    if int(found.amax()) > pattern.most_in_row(shape):
        row = int(found.argmax())
        raise PatternError(
            f"{where}: row {row} has {int(found[row])} groups that are not zero, {pattern} allows "
            f"{pattern.most_in_row(shape)} in one row",
            hint="prune first (slideconvert sparsify) or leave the row cap out",
        )
