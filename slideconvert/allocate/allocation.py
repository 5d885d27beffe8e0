"""A pattern for each fused group: the least summed error for a speed-up, or for a density; and its rules in a recipe.

The options of a group are the patterns whose error was measured; 2:inf among them is 8-bit and not pruned, and runs
dense. Errors are taken to add up over the groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..core.patterns import ALL, Pattern
from ..errors import InputError
from ..models.architecture import Linear
from ..plan.linear_config import LinearConfig
from ..plan.recipe import Recipe, Rule
from .fused import FusedGroup
from .knapsack import Solution, least_error
from .speed import Times

Errors = Mapping[Pattern, float]
"""The error of one fused group with each pattern that may be chosen for it."""


@dataclass(frozen=True)
class Allocation:
    """A pattern for each fused group.

    error: the sum of the groups' errors. floor: no allocation that meets the same target has less; equal to `error`
    where it is proven the best. density: share of weights that may be non-zero. speedup: of all groups together over
    all of them dense; None where no times were given.
    """

    patterns: Mapping[FusedGroup, Pattern]
    error: float
    floor: float
    density: float
    speedup: float | None = None


def allocate_for_speedup(
    groups: Sequence[FusedGroup], errors: Sequence[Errors], times: Sequence[Times], target: float
) -> Allocation:
    """The patterns of least summed error with which all groups together are `target` times as fast as dense.

    errors, times: of each group, the errors in one unit. InputError for a pattern without a time, for a target below
    1, and for one that cannot be reached, with the speed-up that can.
    """
    if not target >= 1:
        raise InputError(f"target speed-up {target:g}: it must be at least 1", hint="1.2 asks for a fifth more speed")
    costs = [{pattern: time.of(pattern) for pattern in error} for error, time in zip(errors, times, strict=True)]
    dense = sum(time.dense for time in times)
    chosen = _choose(groups, errors, costs, dense / target)
    if chosen is None:
        most = dense / sum(min(cost.values()) for cost in costs)
        measured = ", ".join(dict.fromkeys(time.measured for time in times))
        raise InputError(
            f"target speed-up {target:g}: {math.floor(1000 * most) / 1000:g} is the most that can be reached with "
            f"{_tried(errors)} (times of {measured})",
            hint="ask for less, or for another GPU, number of tokens or patterns",
        )
    patterns, solution = chosen
    return Allocation(patterns, solution.error, solution.floor, _density(patterns), dense / solution.cost)


def allocate_for_density(groups: Sequence[FusedGroup], errors: Sequence[Errors], target: float) -> Allocation:
    """The patterns of least summed error that leave at most `target` of the weights, (L - 2) / L of them for 2:L.

    errors: of each group, in one unit. InputError for a target that is no share, and for one that cannot be reached,
    with the density that can.
    """
    if not 0 < target <= 1:
        raise InputError(f"target density {target:g}: it must lie between 0 and 1", hint="0.75 is the density of 2:8")
    costs = [
        {pattern: group.weights * pattern.density for pattern in error}
        for group, error in zip(groups, errors, strict=True)
    ]
    weights = sum(group.weights for group in groups)
    chosen = _choose(groups, errors, costs, weights * target)
    if chosen is None:
        least = sum(min(cost.values()) for cost in costs) / weights
        raise InputError(
            f"target density {target:g}: {math.ceil(1000 * least) / 1000:g} is the least that can be reached with "
            f"{_tried(errors)}",
            hint="ask for more, or allow patterns that keep fewer weights",
        )
    patterns, solution = chosen
    return Allocation(patterns, solution.error, solution.floor, _density(patterns))


def _choose(
    groups: Sequence[FusedGroup], errors: Sequence[Errors], costs: Sequence[Mapping[Pattern, float]], budget: float
) -> tuple[dict[FusedGroup, Pattern], Solution] | None:
    """The pattern of each group, None if nothing costs so little. Mildest first: of equal options it is taken."""
    if not groups:
        raise InputError("no linear needs a pattern", hint="rules with keep: true exclude linears")
    options = [sorted(error, key=lambda pattern: -pattern.density) for error in errors]
    for group, error in zip(groups, errors, strict=True):
        if not error:
            raise InputError(f"{group}: no pattern to choose from", hint="measure its error with one at least")
        for pattern, value in error.items():
            if not 0 <= value < math.inf:
                raise InputError(
                    f"{group}: the error with {pattern} is {value:g}, so it cannot be compared",
                    hint="measure it again, or leave this pattern out",
                )
    values = [
        [(cost[pattern], error[pattern]) for pattern in patterns]
        for patterns, cost, error in zip(options, costs, errors, strict=True)
    ]
    solution = least_error(values, budget)
    if solution is None:
        return None
    patterns = {
        group: patterns[choice] for group, patterns, choice in zip(groups, options, solution.choices, strict=True)
    }
    return patterns, solution


def _density(patterns: Mapping[FusedGroup, Pattern]) -> float:
    kept = sum(group.weights * pattern.density for group, pattern in patterns.items())
    return kept / sum(group.weights for group in patterns)


def _tried(errors: Sequence[Errors]) -> str:
    tried = {pattern for error in errors for pattern in error}
    return ", ".join(str(pattern) for pattern in ALL if pattern in tried)


def with_allocation(recipe: Recipe, patterns: Mapping[FusedGroup, Pattern], linears: Iterable[Linear]) -> Recipe:
    """The recipe, and before its rules those that give groups their patterns: layers that differ first, then the usual
    choice of each submodule.

    linears: all of the model. Those allocated keep what the recipe says of them but the pattern, which is 2:inf for
    what runs dense; the others keep everything. A submodule in the layer has no usual choice if some layer's was not
    allocated.
    """
    chosen = {group: _own(recipe, group, pattern) for group, pattern in patterns.items()}
    submodules: dict[str, list[LinearConfig]] = {}
    for group, choice in chosen.items():
        submodules.setdefault(group.match, []).append(choice)
    allocated = {linear.name for group in chosen for linear in group.linears}
    others = [linear.name for linear in linears if linear.name not in allocated]
    usual = {
        match: max(dict.fromkeys(choices), key=choices.count)
        for match, choices in submodules.items()
        if not any(fnmatchcase(name, f"*.{match}") for name in others)
    }
    special = [
        Rule(f"*.layers.{group.layer}.{group.match}", choice)
        for group, choice in chosen.items()
        if choice != usual.get(group.match)
    ]
    general = [Rule(f"*.{match}", choice) for match, choice in usual.items()]
    return replace(recipe, rules=(*special, *general, *recipe.rules))


def _own(recipe: Recipe, group: FusedGroup, pattern: Pattern) -> LinearConfig:
    """The recipe's config of these linears with another pattern, without the fields of the recipe as a whole."""
    config = recipe.for_linear(group.linears[0].name)
    fields = {name: value for name, value in vars(config).items() if value != getattr(recipe.config, name)}
    return LinearConfig(**{**fields, "pattern": pattern})
