"""What pruning loses in a rotated basis: the objective that rotations minimize.

Optimal Brain Surgeon: setting weight j of a row to zero, where the others compensate, costs w_j² / [H⁻¹]_jj, H the
Gram matrix of the inputs (damped). Pruning to a pattern removes the lowest of these costs in each block, and their sum
estimates its loss. In a basis where the input is x Q and the weight W Q, H⁻¹ becomes QᵀH⁻¹Q, of which only the diagonal
is needed: no matrix is inverted during the search. The estimate is piecewise smooth in Q; its gradient takes the set of
pruned weights as given. DenoiseRotator (arXiv 2505.23049) rotates to concentrate importance too, but minimizes the
entropy of scores, which knows no pattern.

The loss of each linear is relative to the energy of its output, tr(W H Wᵀ), which no rotation changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.patterns import Pattern
from ..core.precision import full_precision
from ..prune.sweep import damp
from .rotations import Blocks, Sides, for_readers, rotate_linear


@dataclass(frozen=True)
class LinearProblem:
    """A linear to be pruned. weight [N, K] float32, its norm folded in where that moves. inverse: of the damped Gram
    matrix of its input, as `inverse_for` makes it. energy: tr(W H Wᵀ), of the mean token."""

    weight: Tensor
    inverse: Tensor
    energy: float


LayerProblem = Mapping[str, LinearProblem]
"""The linears of a layer that a rotation changes, by submodule."""


def inverse_for(gram: Tensor, blocks: Tensor | None) -> Tensor:
    """The part of H⁻¹ that losses in any rotated basis need, float32.

    gram [K, K] float32. blocks [n, size, size]: of the rotation of the input -> the diagonal blocks [n, size, size] of
    the inverse; None for an input that is not rotated -> its diagonal [K].
    """
    with full_precision():
        damped = damp(gram)
        if blocks is None:
            return damped.inverse_diagonal
        inverse = torch.cholesky_inverse(damped.lower)
    size = blocks.shape[1]
    parts = inverse.view(len(inverse) // size, size, -1, size)
    return parts.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def rotated_diagonal(inverse: Tensor, blocks: Tensor | None) -> Tensor:
    """`inverse_for` a rotation, and its blocks -> the diagonal [K] of QᵀH⁻¹Q."""
    if blocks is None:
        return inverse
    return ((inverse @ blocks) * blocks).sum(1).flatten()


def pruned_loss(weight: Tensor, diagonal: Tensor, pattern: Pattern) -> Tensor:
    """weight [N, K], diagonal [K] of H⁻¹, in one basis -> the sum of w² / diagonal over the weights that the pattern
    prunes, a scalar with the gradient of these weights."""
    scores = weight.square() / diagonal
    pruned = ~pattern.select(scores.detach())
    return (scores * pruned).sum()


def linear_losses(
    problem: LayerProblem, sides: Mapping[str, Sides], layer: Blocks, pattern: Pattern
) -> dict[str, Tensor]:
    """The estimated loss of each linear of a layer, relative to the energy of its output; 0 for one without output."""
    losses = {}
    for submodule, linear in problem.items():
        own = sides[submodule]
        weight = rotate_linear(linear.weight, own, layer)
        blocks = for_readers(layer[own.reads], weight.shape[1]) if own.reads in layer else None
        loss = pruned_loss(weight, rotated_diagonal(linear.inverse, blocks), pattern)
        losses[submodule] = loss / linear.energy if linear.energy > 0 else loss * 0
    return losses
