"""From a planned conversion and a target to a pattern for each fused group and a recipe with these patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..calibrate.run import RunSettings
from ..core.patterns import ALL, BlockPattern, Pattern
from ..errors import InputError
from ..models.architecture import Linear
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..plan.recipe import Recipe
from ..progress import Progress, silent
from ..prune import METHODS
from .allocation import Allocation, Errors, allocate_for_density, allocate_for_speedup, with_allocation
from .expected import TimedGroups
from .fused import FusedGroup, fuse, worth_trying
from .measure import measure_errors
from .speed import DEFAULT_TOKENS, SpeedTable, Times

DENSE = BlockPattern(None)
ROUNDING = 1e-9
"""Relative slack within which sums of times and weights meet a target."""


@dataclass(frozen=True)
class SpeedTarget:
    """Linears that together are `speedup` times as fast as dense ones, by `table` at `tokens` tokens."""

    speedup: float
    table: SpeedTable
    tokens: int = DEFAULT_TOKENS


@dataclass(frozen=True)
class DensityTarget:
    """At most this share of the weights non-zero."""

    density: float


Target = SpeedTarget | DensityTarget


@dataclass(frozen=True)
class Uniform:
    """The outcome of one pattern for all groups but those with a pattern of their own by a rule. speedup: None without
    times."""

    pattern: Pattern
    error: float
    density: float
    speedup: float | None


@dataclass(frozen=True)
class Chosen:
    """The allocation for a target, and its alternatives.

    errors: of each allocated group, by pattern. uniform: one pattern for all of them instead, for each pattern tried.
    measured: the GPUs, models and numbers of tokens behind the times. left_out: linears without an allocation, since
    they are kept or, for a speed-up, not quantized. recipe: of the plan, with the rules of the allocation.
    """

    target: Target
    allocation: Allocation
    errors: dict[FusedGroup, Errors]
    uniform: tuple[Uniform, ...]
    measured: tuple[str, ...]
    left_out: tuple[str, ...]
    recipe: Recipe

    @property
    def best_uniform(self) -> Uniform | None:
        """Of the single patterns that meet the target, the one of least error."""
        if isinstance(self.target, DensityTarget):
            wanted = self.target.density
            meeting = [one for one in self.uniform if one.density <= wanted * (1 + ROUNDING)]
        else:
            least = self.target.speedup
            meeting = [one for one in self.uniform if one.speedup and one.speedup >= least * (1 - ROUNDING)]
        return min(meeting, key=lambda one: one.error, default=None)


def choose_patterns(plan: Plan, target: Target, settings: RunSettings, progress: Progress = silent) -> Chosen:
    """Measure the error of each pattern and choose those of least summed error that meet the target.

    The recipe's own pattern is ignored; patterns of its rules are fixed, and kept linears stay.
    InputError for a target that cannot be met (before anything is measured), a method that prunes nothing, a table
    without the needed times, and whatever `measure_errors` refuses.
    """
    choice = _choice(plan, target)
    errors = measure_errors(plan, settings, choice.candidates, progress)
    groups, times = choice.groups, choice.times
    allocation = _allocate(groups, errors, times, target)
    chosen_for = {linear for group in groups for linear in group.linears}
    return Chosen(
        target=target,
        allocation=allocation,
        errors=dict(zip(groups, errors, strict=True)),
        uniform=tuple(_uniform(pattern, groups, errors, times) for pattern in choice.tried),
        measured=tuple(dict.fromkeys(time.measured for time in times or ())),
        left_out=tuple(linear.name for linear in choice.linears if linear not in chosen_for),
        recipe=with_allocation(plan.recipe, allocation.patterns, choice.linears),
    )


def choose_unmeasured(plan: Plan, target: Target) -> Recipe:
    """The recipe that `choose_patterns` would make if all linears were equally sensitive to pruning, with errors that
    grow as the square of the share pruned: errors need the weights. Raises what it does before it measures."""
    choice = _choice(plan, target)
    errors = [
        {pattern: group.weights * (1 - pattern.density) ** 2 for pattern in choice.candidates[group]}
        for group in choice.groups
    ]
    allocation = _allocate(choice.groups, errors, choice.times, target)
    return with_allocation(plan.recipe, allocation.patterns, choice.linears)


@dataclass(frozen=True)
class _Choice:
    """What a target leaves to choose. groups: those that get a pattern, with their times for a speed-up. candidates:
    the patterns of each. tried: those of all groups whose pattern no rule fixes. linears: of the model, in order."""

    groups: list[FusedGroup]
    times: list[Times] | None
    candidates: Mapping[FusedGroup, Sequence[Pattern]]
    tried: Sequence[Pattern]
    linears: list[Linear]


def _choice(plan: Plan, target: Target) -> _Choice:
    """InputError for a target that cannot be met, whatever the errors, and for what excludes a choice."""
    first = {plan.linear: plan for plan in plan.linears}
    every = fuse({linear: own.stored.shape for linear, own in first.items()})
    # Fused linears have equal plans, so the first one's is the group's.
    plans = {group: first[group.linears[0]] for group in every}
    by_rule = {group: _fixed(plan.recipe, group) for group in every if not plans[group].kept}
    times = _times(plans, target) if isinstance(target, SpeedTarget) else None
    groups = [group for group in by_rule if times is None or group in times]
    fixed = {group: by_rule[group] for group in groups}
    free = [group for group, pattern in fixed.items() if pattern is None]
    tried = ALL if times is None else (*worth_trying([times[group] for group in free]), DENSE)
    candidates = {group: tried if pattern is None else (pattern,) for group, pattern in fixed.items()}
    _check_methods(plan.recipe, free, tried)
    in_order = None if times is None else [times[group] for group in groups]
    # Whether a target can be met does not depend on the errors: refuse it before they are measured.
    _allocate(groups, [dict.fromkeys(candidates[group], 0.0) for group in groups], in_order, target)
    return _Choice(groups, in_order, candidates, tried if free else (), list(first))


def _times(plans: dict[FusedGroup, LinearPlan], target: SpeedTarget) -> dict[FusedGroup, Times]:
    """The times of the quantized groups, each by its scheme."""
    quantized = {group: own for group, own in plans.items() if own.scheme.quantized and not own.kept}
    if not quantized:
        raise InputError("no linear is quantized, so no times apply", hint="--scheme int8 or fp8, or --density")
    timed = {group: (own.scheme.name, own.pattern) for group, own in quantized.items()}
    return TimedGroups(list(plans), timed).times(target.table, target.tokens)


def _fixed(recipe: Recipe, group: FusedGroup) -> Pattern | None:
    """The pattern that a rule of the recipe gives this group."""
    name = group.linears[0].name
    if recipe.for_linear(name).whole_groups:
        raise InputError(
            f"{name}: whole groups are pruned, and a target chooses among 2:L patterns",
            hint="leave the target out, or sparsity and method gqsa",
        )
    rule = recipe.rule_for(name)
    return rule.config.pattern if rule else None


def _check_methods(recipe: Recipe, groups: Sequence[FusedGroup], tried: Sequence[Pattern]) -> None:
    """A method that does not prune would make all patterns look alike."""
    for group in groups:
        method = recipe.for_linear(group.linears[0].name).method
        if method and not METHODS[method].prunes and any(pattern.prunes for pattern in tried):
            pruning = ", ".join(name for name, known in METHODS.items() if known.prunes)
            raise InputError(
                f"{group}: method {method} prunes nothing, so there is no pattern to choose", hint=f"choose {pruning}"
            )


def _allocate(
    groups: Sequence[FusedGroup], errors: Sequence[Errors], times: Sequence[Times] | None, target: Target
) -> Allocation:
    if isinstance(target, DensityTarget):
        return allocate_for_density(groups, errors, target.density)
    assert times is not None
    return allocate_for_speedup(groups, errors, times, target.speedup)


def _uniform(
    pattern: Pattern, groups: Sequence[FusedGroup], errors: Sequence[Errors], times: Sequence[Times] | None
) -> Uniform:
    own = [pattern if pattern in error else next(iter(error)) for error in errors]
    speedup = None
    if times is not None:
        speedup = sum(time.dense for time in times) / sum(map(Times.of, times, own))
    return Uniform(
        pattern=pattern,
        error=sum(error[chosen] for error, chosen in zip(errors, own, strict=True)),
        density=sum(group.weights * chosen.density for group, chosen in zip(groups, own, strict=True))
        / sum(group.weights for group in groups),
        speedup=speedup,
    )
