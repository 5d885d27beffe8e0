"""Group patterns: which 1 x G groups of a linear stay, given a score for each; and the scores of GQSA.

The share of groups that goes is taken from the linear as a whole, so rows differ in what they keep. Three limits: every
row keeps its best group, no row keeps more than its cap, and ties break by place, the group further down or to the
right goes: the result is the same on every device and in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import AnyPattern, GroupPattern, Pattern
from ..core.select import keep_mask
from .sweep import Damped


def keep_groups(score: Tensor, pattern: GroupPattern) -> Tensor:
    """score [N, K / G] float32, not NaN, of groups -> those that stay [N, K / G] bool, exactly pattern.kept of them.

    Raises PatternError if there are fewer than rows.
    """
    rows, groups = score.shape
    shape = (rows, groups * pattern.size)
    pattern.check_shape(shape, "weight")
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(groups, device=score.device).expand(rows, -1))
    wanted = score.masked_fill(rank == 0, torch.inf).masked_fill(rank >= pattern.most_in_row(shape), -torch.inf)
    keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    keep[wanted.flatten().argsort(descending=True, stable=True)[: pattern.kept(shape)]] = True
    return keep.view(rows, groups)


def in_columns(keep: Tensor, pattern: GroupPattern) -> Tensor:
    """keep [N, K / G] of groups -> keep [N, K] of weights."""
    return keep.repeat_interleave(pattern.size, 1)


def largest(weight: Tensor, pattern: AnyPattern) -> Tensor:
    """weight [N, K] float32 -> keep mask [N, K] bool of the largest weights, or of the groups with the largest sums of
    squares, that the pattern allows."""
    if isinstance(pattern, Pattern):
        return keep_mask(weight.abs(), pattern)
    score = weight.square().unflatten(1, (-1, pattern.size)).sum(2)
    return in_columns(keep_groups(score, pattern), pattern)


def saliency(weight: Tensor, damped: Damped, pattern: GroupPattern) -> Tensor:
    """weight [N, K] float32 -> [N, K / G], the mean over each group of w^2 / [H^-1]_jj^2 (GQSA, equation 4)."""
    score = (weight / damped.inverse_diagonal).square_()
    return score.unflatten(1, (-1, pattern.size)).mean(2)


def group_losses(weight: Tensor, damped: Damped, pattern: GroupPattern) -> Tensor:
    """weight [N, K] float32 -> [N, K / G], what it costs if a group alone goes and all others make up for it.

    w_g ([H^-1]_gg)^-1 w_g^T: Optimal Brain Surgeon for a whole group, exact where the diagonal is an estimate.
    """
    inverse = torch.cholesky_inverse(damped.lower)
    count = weight.shape[1] // pattern.size
    spots = torch.arange(weight.shape[1], device=weight.device).view(count, pattern.size)
    blocks = inverse[spots[:, :, None], spots[:, None, :]]  # [K / G, G, G]
    groups = weight.unflatten(1, (count, pattern.size)).transpose(0, 1)  # [K / G, N, G]
    return (groups * torch.linalg.solve(blocks, groups.mT).mT).sum(2).T.contiguous()
