"""Method saliency, the first step of the GQSA paper: prune the least salient groups, round the others to nearest.

Training, block by block and then end to end, compensates for the loss (recover/). Method gqsa replaces this step with
ADMM, refit and compensated rounding (solvers.py), which leave much less loss to training.
"""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import GroupPattern
from ..core.select import apply_mask
from .problem import Problem, Solved
from .solvers import prepared
from .sweep import Damped


def saliency(problem: Problem[GroupPattern]) -> Solved:
    """Keep the most salient groups and round them to nearest (GQSA, arXiv 2412.17560, sections 3.1 and 3.2)."""
    damped, weight = prepared(problem)
    keep = problem.pattern.select(group_saliency(weight, damped, problem.pattern))
    return Solved(problem.scheme.store(apply_mask(weight, keep)), damped.notes)


def group_saliency(weight: Tensor, damped: Damped, pattern: GroupPattern) -> Tensor:
    """weight [N, K] float32 -> [N, K / G] float32: the mean of w² / [H⁻¹]_jj² over each group (GQSA, equation 4)."""
    score = (weight / damped.inverse_diagonal).square_()
    means: Tensor = score.unflatten(1, (-1, pattern.size)).mean(2)
    return means
