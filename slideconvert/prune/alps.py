"""ALPS: choose the mask of all columns at once, by ADMM (arXiv 2406.07831, algorithm 1).

A sweep decides one block or group after another and never revises one. ALPS splits the layer's problem

    minimize (W - D) H (W - D)ᵀ, D of the pattern

into an unconstrained variable B and a variable D that follows the pattern, and a multiplier V pulls them together:

    B = (WH - V + ρD)(H + ρI)⁻¹     D = the part of B + V/ρ that the pattern keeps     V = V + ρ(B - D)

where columns are scaled so that diag(H) = 1. ρ grows while the mask changes; the result is the mask that no longer
changes, and the refit solves for its weights.

The state is the point P = B + V/ρ. Then B = W + (D - V/ρ - W) · ρ(H + ρI)⁻¹, and V/ρ = P - D. The eigenvalues of
ρ(H + ρI)⁻¹ lie between 0 and 1, so float32 suffices however ill-conditioned H is. The paper decomposes H into
eigenvectors once; a Cholesky inverse for each ρ costs no more than multiplying the eigenvectors together again, and
needs no decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import Pattern
from ..errors import InputError
from .problem import Total, alone

START = 0.1
"""The first ρ, where diag(H) = 1 …"""
UNEXPLAINED = 0.5
"""… but at most this share of what the other inputs leave unexplained of one on average, 1 / diag(H⁻¹): where inputs
are nearly copies of each other, a larger ρ freezes the initial mask (measured: 20 % more loss). The authors' code
restarts with a smaller ρ instead."""
INTERVAL = 3
"""Iterations between two checks of the mask."""
MOST = 300
"""Iterations at most."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Pairs: the least share of the mask that changed, and the factor by which ρ grows then."""
SETTLED, SETTLED_AFTER = 0.0003, 30
"""After SETTLED_AFTER iterations, a mask is final if a smaller share than SETTLED changes."""


def alps_mask(weight: Tensor, gram: Tensor, pattern: Pattern, total: Total = alone) -> Tensor:
    """weight [N, K] float32 -> keep mask [N, K] bool that follows the pattern.

    gram [K, K] float32: H, damped and so positive definite, on the weight's device. total: of a Problem; all parts of a
    weight take equally many iterations. Everything is float32, TF32 must be off. Every run on one device gives the same
    mask. InputError if gram is not positive definite.
    """
    if not pattern.prunes:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    norm = gram.diagonal().sqrt()
    weight, gram = weight * norm, gram / norm / norm[:, None]
    unexplained = float(_inverse(gram, 0.0).diagonal().reciprocal().mean())
    rho = min(START, UNEXPLAINED * unexplained)
    keep = pattern.select_largest(weight)
    kept = max(1, int(total(keep.sum())))
    pruned, rest = weight * keep, torch.zeros_like(weight)  # D and V/ρ
    for done in range(INTERVAL, MOST + 1, INTERVAL):
        before, pull = keep, _inverse(gram, rho).mul_(rho)
        for _ in range(INTERVAL):
            point = torch.addmm(weight + rest, pruned - rest - weight, pull)
            keep = pattern.select_largest(point)
            pruned = point * keep
            rest = point - pruned
        changed = int(total((keep != before).sum())) / kept
        if changed == 0 or (changed < SETTLED and done >= SETTLED_AFTER):
            break
        growth = next(factor for share, factor in GROWTH if changed >= share)
        rho, rest = rho * growth, rest / growth  # V stays
    return keep


def _inverse(gram: Tensor, rho: float) -> Tensor:
    """gram [K, K], rho -> (gram + ρI)⁻¹ [K, K]."""
    shifted = gram.clone()
    shifted.diagonal().add_(rho)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        raise InputError(
            f"ADMM: the Gram matrix [{len(gram)}, {len(gram)}] of the inputs is not positive definite",
            hint="give it more damping, or take the mask from the sweep (method obs)",
        )
    return torch.cholesky_inverse(lower)
