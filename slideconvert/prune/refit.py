"""Refit: solve for the kept weights again on a fixed mask, to reproduce the outputs of the dense model.

The sweep decides and compensates column by column. Once the mask is known, the kept weights of a row solve a least
squares problem, min (ŵ - w) H (ŵ - w)ᵀ with ŵ zero off the mask. Preconditioned conjugate gradients (ALPS, arXiv
2406.07831, algorithm 2) solve all rows at once with one product by H per step. Stopped early they regularize: the
exact solution fits the calibration tokens better and others worse.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .problem import Total, alone
from .statistics import Statistics
from .sweep import Damped


def refit_steps(target: Tensor, start: Tensor, keep: Tensor, gram: Tensor, most: int) -> Iterator[Tensor]:
    """Yields `start` and the weights [N, K] after each of at most `most` steps; the H-error of every row falls.

    target, start [N, K] float32, start zero off the mask; keep [N, K] bool; gram [K, K] positive definite. Jacobi
    preconditioner, α and β per row. Ends early once the gradient is zero to rounding.
    """
    inverse_diagonal = gram.diagonal().reciprocal()
    mask = keep.float()  # products of floats and booleans are slow on a CPU
    weight = start * mask
    yield weight
    residual = (target - weight) @ gram * mask
    scaled = residual * inverse_diagonal
    direction = scaled
    power = (residual * scaled).sum(1, keepdim=True)
    first = power
    for _ in range(most):
        moved = (direction @ gram).mul_(mask)
        curvature = (direction * moved).sum(1, keepdim=True)
        going = (power > first * 1e-12) & (curvature > 0)  # converged rows do not move
        if not bool(going.any()):
            return
        length = torch.where(going, power / curvature, torch.zeros_like(power))
        weight = torch.addcmul(weight, length, direction)
        yield weight
        residual = residual.addcmul_(length, moved, value=-1)
        scaled = residual * inverse_diagonal
        new_power = (residual * scaled).sum(1, keepdim=True)
        ahead = torch.where(going, new_power / power, torch.zeros_like(power))
        direction, power = torch.addcmul(scaled, ahead, direction), new_power


def refit(target: Tensor, start: Tensor, keep: Tensor, gram: Tensor, steps: int) -> Tensor:
    """The weights [N, K] after `steps` steps of `refit_steps`."""
    weight = start
    for step in refit_steps(target, start, keep, gram, steps):
        weight = step
    return weight


def best_step_count(
    weight: Tensor,
    target: Tensor,
    start: Tensor,
    keep: Tensor,
    gram: Tensor,
    held: Statistics,
    most: int,
    total: Total = alone,
) -> int:
    """The number of refit steps, 0 to `most`, with the least error on the held-out tokens, which are not in `gram`.

    weight [N, K] float32: the source's. target, start, keep, gram: as for `refit_steps`. total: of a Problem.
    """
    loss = held.loss_of(weight)
    losses = [loss(step) for step in refit_steps(target, start, keep, gram, most)]
    losses += losses[-1:] * (most + 1 - len(losses))  # converged, while other parts of the weight may go on
    sums = total(torch.tensor(losses, dtype=torch.float64, device=target.device)).tolist()
    return min(range(len(sums)), key=lambda count: sums[count])


def asymmetric_target(weight: Tensor, damped: Damped, cross: Tensor, strength: float) -> Tensor:
    """W* = W + strength · W · cross · H⁻¹, [N, K]: the target when the inputs differ from those of the dense model.

    min ||ŵX - wX̃||² + λ||ŵ - w||² equals (w* - ŵ) H (w* - ŵ)ᵀ up to a constant, with H = XᵀX + λ and strength 1, by
    completing the square (the idea is GPTAQ's, arXiv 2504.02692). A strength below 1 gives the statistics less weight.
    """
    return weight + strength * damped.solve(weight @ cross)
