"""Scores of groups: what it costs to prune one (GQSA, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import GroupPattern
from .sweep import Damped


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
