"""The first step of GQSA as its paper has it: the least salient groups are pruned, the others rounded to nearest.

Training, block by block and then end to end, compensates (recover/). Method gqsa takes the same step by ADMM, refit
and compensated rounding (solvers.py), which leaves much less to training.
"""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import GroupPattern
from ..core.select import apply_mask
from .problem import Problem, Solved
from .solvers import prepared
from .sweep import Damped


def saliency(problem: Problem[GroupPattern]) -> Solved:
    """The salient groups (GQSA, section 3.1 and 3.2), to nearest codes of the scheme."""
    damped, weight = prepared(problem)
    keep = problem.pattern.select(group_saliency(weight, damped, problem.pattern))
    return Solved(problem.scheme.store(apply_mask(weight, keep)), damped.notes)


def group_saliency(weight: Tensor, damped: Damped, pattern: GroupPattern) -> Tensor:
    """weight [N, K] float32 -> [N, K / G], the mean over each group of w^2 / [H^-1]_jj^2 (GQSA, equation 4)."""
    score = (weight / damped.inverse_diagonal).square_()
    means: Tensor = score.unflatten(1, (-1, pattern.size)).mean(2)
    return means
