"""Wanda: prune the weights with the smallest |w| · ||X_j||; the others stay unchanged (arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import Pattern
from ..core.select import apply_mask
from .problem import Problem, Solved


def wanda(problem: Problem[Pattern]) -> Solved:
    """Wanda's mask; kept weights are rounded to nearest. Latent weights, if known, score ternary ones."""
    weight, norms = problem.weight, problem.statistics.norms
    keep = wanda_mask(weight if problem.latent is None else problem.latent, norms, problem.pattern)
    return Solved(problem.scheme.store(apply_mask(weight, keep)))


def wanda_mask(weight: Tensor, norms: Tensor, pattern: Pattern) -> Tensor:
    """weight [N, K] float32, norms [K] root mean square of each input -> keep mask [N, K] bool."""
    return pattern.select_largest(weight * norms)
