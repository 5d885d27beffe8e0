"""One option for each group, so that the errors add up to the least and the costs to no more than a budget.

The multiple-choice knapsack problem, solved by branch and bound over a frontier: group after group, all sums of costs
and errors that can still matter are kept. A sum does not matter if another one costs no more and has no more error
(dominance), or if it cannot lead to less error than a solution that is known already. That is told by the relaxed
problem, in which a group may take any mix of two options: its answer is never above the true one, and comes at once
from the lower convex hulls of the groups' options, taken in order of error saved per cost (Dyer 1984, Zemel 1984).

Exact, up to the rounding of float64 sums. With measured errors a few thousand sums matter, and 80 layers of 4 groups
with 8 options take a fifth of a second. Where errors are nearly proportional to costs, too many do: then the
most promising MOST_SUMS are kept, and `Solution.floor` says how far from the least error the answer can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_SUMS = 20_000
"""Sums that are kept from group to group at most: about ten seconds for 320 groups where all of them are."""
ROUNDING = 1e-9
"""Of the largest sum of errors: what float64 sums of another order may differ by, with room to spare."""
BUDGET_ROUNDING = 1e-12
"""The same, of the budget: a solution that costs exactly the budget must not be lost."""

Option = tuple[float, float]
"""Cost and error of one option, both finite and >= 0."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """choices: for each group the index of its option. cost, error: the sums.

    floor: no choices within the budget have less error than this; `error` itself where the answer is proven exact.
    """

    choices: tuple[int, ...]
    cost: float
    error: float
    floor: float


def least_error(groups: Sequence[Sequence[Option]], budget: float) -> Solution | None:
    """The options with the least sum of errors whose costs add up to at most `budget`; None if there are none.

    Of solutions with the same error one of the least cost; of those always the same one.
    """
    fronts = [_front(options) for options in groups]
    costs = [np.array([options[i][0] for i in front]) for options, front in zip(groups, fronts, strict=True)]
    errors = [np.array([options[i][1] for i in front]) for options, front in zip(groups, fronts, strict=True)]
    relaxed = _Relaxed(costs, errors)
    limit = budget * (1 + BUDGET_ROUNDING)
    if relaxed.cost[0] > limit:
        return None
    slack = ROUNDING * float(relaxed.error[0])
    known, floor = relaxed.greedy(0, limit, 0.0), np.inf
    cost, error = np.zeros(1), np.zeros(1)
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for done, (more_cost, more_error) in enumerate(zip(costs, errors, strict=True), 1):
        sums, losses = np.add.outer(cost, more_cost).ravel(), np.add.outer(error, more_error).ravel()
        bound = losses + relaxed.least(done, limit - sums)
        kept = np.flatnonzero(bound <= known + slack)
        kept = kept[_undominated(sums[kept], losses[kept])]
        if too_many := len(kept) > MOST_SUMS:
            promising = np.argsort(bound[kept], kind="stable")
            floor = min(floor, float(bound[kept[promising[MOST_SUMS]]]))
            kept = kept[np.sort(promising[:MOST_SUMS])]
        first = kept[np.argmin(bound[kept])]
        reached = relaxed.greedy(done, limit - sums[first], losses[first])
        # What is known must be reachable from a sum that is kept, else all of them might go.
        known = reached if too_many else min(known, reached)
        cost, error = sums[kept], losses[kept]
        trail.append((kept // len(more_cost), kept % len(more_cost)))
    best = len(cost) - 1  # a frontier ends with its least error
    choices, at = [], best
    for front, (before, option) in zip(reversed(fronts), reversed(trail), strict=True):
        choices.append(front[option[at]])
        at = before[at]
    least = float(error[best])
    return Solution(tuple(reversed(choices)), float(cost[best]), least, min(floor, least))


def _front(options: Sequence[Option]) -> list[int]:
    """The options that no other one makes pointless, by rising cost and falling error."""
    costs, errors = (np.array([option[part] for option in options], dtype=np.float64) for part in (0, 1))
    return [int(index) for index in _undominated(costs, errors)]


def _undominated(costs: Floats, errors: Floats) -> NDArray[np.intp]:
    """Indices by rising cost and strictly falling error; of equal ones the first."""
    order = np.lexsort((errors, costs))
    sorted_errors = errors[order]
    falls = np.ones(len(order), dtype=bool)
    falls[1:] = sorted_errors[1:] < np.minimum.accumulate(sorted_errors)[:-1]
    return order[falls]


class _Relaxed:
    """The problem of the groups from some group on, in which a group may take any mix of two options.

    cost, error [groups + 1]: sums over the groups from here on where each takes its cheapest option.
    The rest are steps along the groups' hulls, all of them together by falling error saved per cost.
    """

    def __init__(self, costs: list[Floats], errors: list[Floats]) -> None:
        hulls = [_hull(cost, error) for cost, error in zip(costs, errors, strict=True)]
        pairs = list(zip(costs, errors, hulls, strict=True))
        self.cost = _suffix_sums([float(cost[0]) for cost in costs])
        self.error = _suffix_sums([float(error[0]) for error in errors])
        steps = np.concatenate([np.diff(cost[hull]) for cost, _, hull in pairs])
        saved = np.concatenate([-np.diff(error[hull]) for _, error, hull in pairs])
        group = np.repeat(np.arange(len(pairs)), [len(hull) - 1 for hull in hulls])
        # Stable: the steps of one hull keep their order where rounding makes their slopes equal.
        order = np.argsort(-saved / steps, kind="stable")
        self._steps, self._saved, self._group = steps[order], saved[order], group[order]

    def least(self, first: int, room: Floats) -> Floats:
        """A lower bound of the error of the groups from `first` on, for each room left; infinite where none is."""
        here = self._group >= first
        spent = np.append(0.0, np.cumsum(self._steps[here]))
        saved = np.append(0.0, np.cumsum(self._saved[here]))
        free = room - self.cost[first]
        return np.where(free < 0, np.inf, self.error[first] - np.interp(free, spent, saved))

    def greedy(self, first: int, room: float, error: float) -> float:
        """The error of a true solution: of `error` so far, and steps from group `first` on as long as they fit."""
        free, error = room - self.cost[first], error + self.error[first]
        full: set[int] = set()
        for step, saved, group in zip(self._steps, self._saved, self._group, strict=True):
            if group < first or group in full:
                continue
            if step <= free:
                free, error = free - step, error - saved
            else:
                full.add(group)
        return float(error)


def _suffix_sums(values: list[float]) -> Floats:
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _hull(costs: Floats, errors: Floats) -> list[int]:
    """Of options by rising cost and falling error, those on their lower convex hull."""

    def slope(a: int, b: int) -> float:
        return float((errors[b] - errors[a]) / (costs[b] - costs[a]))

    hull: list[int] = []
    for point in range(len(costs)):
        while len(hull) >= 2 and slope(hull[-2], hull[-1]) >= slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull
