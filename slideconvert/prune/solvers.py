"""Calibrated methods that compensate for pruning and rounding: hessian, gptq, obs, alps and gqsa.

obs, alps and gqsa share four steps and differ in how they find the mask:

    1. target W*        compensate for inputs that differ from the dense model's (asymmetric_target)
    2. mask             the SparseGPT sweep on W* (method obs), or ADMM for all columns at once (alps, gqsa)
    3. refit            conjugate gradients on the kept weights, for the number of steps that is best on held-out tokens
    4. rounding         the GPTQ sweep on the fixed mask, columns of largest input first

Statistics are those of the fitted tokens; held-out ones choose the number of steps, and nothing else. At a least
squares solution the loss of any Q on the mask is a constant plus its distance to that solution, so rounding may aim at
the refitted weights alone (step 4 needs no data but the Gram matrix).

Ternary weights are rounded to -1, 0, 1 times their own scale, and then improved by coordinate descent (descent.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.patterns import BlockPattern, GroupPattern, Pattern
from ..core.quantize import Grid, QuantizedWeight, Weight
from ..core.schemes import Scheme
from ..core.select import apply_mask
from .alps import alps_mask
from .descent import descend
from .problem import Problem, Solved
from .refit import asymmetric_target, best_step_count, refit
from .sweep import Damped, block_order, column_order, damp, sweep

STEPS = 12
"""Most steps of the refit; on held-out tokens fewer are usually best."""
STRENGTH = 0.5
"""Share of the way to the exact asymmetric target."""

FindMask = Callable[[Tensor, Damped], tuple[Tensor, Tensor]]
"""Target [N, K] float32 and Gram matrix -> keep mask [N, K] bool, and the weights [N, K] where the refit starts."""


@dataclass(frozen=True)
class Refitted:
    """A mask and the kept weights before rounding. source, target, weight [N, K] float32: the source without dead
    inputs, the target of the refit, and the refitted weights. keep [N, K] bool."""

    source: Tensor
    weight: Tensor
    target: Tensor
    keep: Tensor
    damped: Damped


def hessian(problem: Problem[BlockPattern]) -> Solved:
    """SparseGPT (arXiv 2301.00774): one sweep prunes and rounds."""
    damped, weight = prepared(problem)
    grid = problem.scheme.grid(weight) if problem.scheme.quantized else None
    order = block_order(weight, damped, problem.pattern, problem.total)
    made, _ = sweep(weight, damped.gram, order, choose=problem.pattern, grid=grid)
    return Solved(made, damped.notes)


def gptq(problem: Problem[Pattern]) -> Solved:
    """GPTQ (arXiv 2210.17323): the sweep rounds and keeps the zeros that the weight has already."""
    damped, weight = prepared(problem)
    return Solved(on_mask(weight, weight != 0, damped, problem.scheme), damped.notes)


def sweep_refit(problem: Problem[BlockPattern]) -> Solved:
    """Method obs: the four steps with the mask of the sweep."""

    def swept(target: Tensor, damped: Damped) -> tuple[Tensor, Tensor]:
        order = block_order(target, damped, problem.pattern, problem.total)
        start, keep = sweep(target, damped.gram, order, choose=problem.pattern)
        assert isinstance(start, Tensor)
        return keep, start

    return _rounded_to_blocks(problem, swept)


def alps(problem: Problem[BlockPattern]) -> Solved:
    """The four steps with ADMM's mask (ALPS, arXiv 2406.07831)."""
    return _rounded_to_blocks(problem, _admm(problem))


def gqsa(problem: Problem[GroupPattern]) -> Solved:
    """The four steps with ADMM's mask of whole groups."""
    fitted = _refitted(problem, _admm(problem))
    return Solved(on_mask(fitted.weight, fitted.keep, fitted.damped, problem.scheme), fitted.damped.notes)


def on_mask(weight: Tensor, keep: Tensor, damped: Damped, scheme: Scheme, grid: Grid | None = None) -> Weight:
    """Round weight [N, K] float32 to the scheme with keep mask [N, K] bool; pruned weights become exactly zero.

    grid: scales and zero points of the codes; None: the ones that cover the kept weights.
    """
    if not scheme.quantized:
        return apply_mask(weight, keep)
    made, _ = sweep(weight, damped.gram, column_order(damped), keep=keep, grid=grid or scheme.grid(weight * keep))
    return made


def prepared(problem: Problem[Pattern]) -> tuple[Damped, Tensor]:
    """The damped Gram matrix, and the weight [N, K] float32 with zeros in the columns of dead inputs."""
    damped = damp(problem.statistics.gram)
    return damped, torch.where(damped.dead, torch.zeros_like(problem.weight), problem.weight)


def _admm(problem: Problem[Pattern]) -> FindMask:
    def find(target: Tensor, damped: Damped) -> tuple[Tensor, Tensor]:
        keep = alps_mask(target, damped.gram, problem.pattern, problem.total)
        return keep, target * keep

    return find


def _refitted(problem: Problem[Any], find_mask: FindMask) -> Refitted:
    """Steps 1 to 3."""
    statistics = problem.statistics
    damped, weight = prepared(problem)
    target = weight
    if statistics.cross is not None:
        target = asymmetric_target(weight, damped, statistics.cross, STRENGTH)
    keep, start = find_mask(target, damped) if problem.pattern.prunes else (weight != 0, target)
    steps = STEPS
    if statistics.held is not None:
        steps = best_step_count(weight, target, start, keep, damped.gram, statistics.held, STEPS, problem.total)
    return Refitted(weight, refit(target, start, keep, damped.gram, steps), target, keep, damped)


def _rounded_to_blocks(problem: Problem[BlockPattern], find_mask: FindMask) -> Solved:
    """All four steps; then coordinate descent improves ternary codes."""
    scheme, fitted = problem.scheme, _refitted(problem, find_mask)
    if not scheme.ternary:
        return Solved(on_mask(fitted.weight, fitted.keep, fitted.damped, scheme), fitted.damped.notes)
    rounded = on_mask(fitted.weight, fitted.keep, fitted.damped, scheme, scheme.grid(fitted.source))
    assert isinstance(rounded, QuantizedWeight)
    codes, scale = descend(
        rounded.codes.float(), rounded.scale, fitted.target, fitted.damped.gram, problem.pattern, problem.latent
    )
    return Solved(QuantizedWeight(scheme.to_codes(codes), scale, scheme), fitted.damped.notes)
