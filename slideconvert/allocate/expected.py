"""The expected speed-up of a planned model, by a table of measured times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.patterns import Pattern
from ..core.schemes import Scheme
from ..errors import NotMeasuredError
from ..formats.slide import Slide
from ..models.architecture import Linear
from .fused import FusedGroup, fuse, group_times
from .rows import Shape
from .speed import DEFAULT_TOKENS, SpeedTable, Times

if TYPE_CHECKING:
    from ..plan.linear import LinearPlan

ROUNDING = 1e-9
"""Relative slack of sums of times."""


@dataclass(frozen=True)
class Expected:
    """Expected times of a model's 8-bit linears at `tokens` tokens, all layers together, in the table's unit.

    dense: none of them pruned. planned: with the patterns of the plan. in_table: the same, as the table has it: less
    where its speed-ups exceed their bound. ideal: on sparse tensor cores that are twice as fast. measured: the GPUs,
    models and numbers of tokens behind the times. left_out: linears for which no table has times.
    """

    gpu: str
    tokens: int
    dense: float
    planned: float
    in_table: float
    ideal: float
    measured: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """Of the linears over dense 8-bit ones, without attention, norms and the head."""
        return self.dense / self.planned

    @property
    def table_speedup(self) -> float:
        """As the table has it, beyond the bound if it is so there."""
        return self.dense / self.in_table

    @property
    def bound(self) -> float:
        """What sparse tensor cores that are twice as fast would give."""
        return self.dense / self.ideal

    @property
    def beyond_bound(self) -> bool:
        """Whether the table has more than the bound."""
        return self.table_speedup > self.bound * (1 + ROUNDING)


@dataclass(frozen=True)
class TimedLinear:
    """What the time of a linear depends on. shape: (out, in). kept: stored as in the source, so that no sparse kernel
    runs it."""

    linear: Linear
    shape: Shape
    scheme: Scheme
    pattern: Pattern
    kept: bool

    @property
    def timed(self) -> bool:
        """Whether a table may have times: of linears that sparse kernels for windows run."""
        return not self.kept and Slide().stores(self.scheme, whole_groups=self.pattern.whole_groups)


@dataclass(frozen=True)
class TimedGroups:
    """The fused groups of a model's linears. every: all of them, by which a table finds the nearest layer. timed: the
    scheme and pattern of those that the sparse kernels run."""

    every: Sequence[FusedGroup]
    timed: Mapping[FusedGroup, tuple[str, Pattern]]

    @classmethod
    def of(cls, linears: Sequence[TimedLinear]) -> TimedGroups:
        """NotMeasuredError if tables have times of none."""
        known = {one.linear: one for one in linears}
        every = fuse({one.linear: one.shape for one in linears})
        # Fused linears are treated alike, so the first one's scheme and pattern are the group's.
        first = {group: known[group.linears[0]] for group in every}
        timed = {group: (one.scheme.name, one.pattern) for group, one in first.items() if one.timed}
        if not timed:
            raise NotMeasuredError(
                "no linear is quantized to 8 bits by row, and tables have times of no others",
                hint="--scheme int8 or fp8; slideconvert bench serve CKPT measures a checkpoint of any kind",
            )
        return cls(every, timed)

    def times(self, table: SpeedTable, tokens: int, scheme: str | None = None) -> dict[FusedGroup, Times]:
        """The times of the timed groups, each in its scheme or all in another one. NotMeasuredError if the table lacks
        any."""
        schemes = {group: scheme or own for group, (own, _) in self.timed.items()}
        found = {
            one: dict(zip(self.every, group_times(self.every, table, one, tokens), strict=True))
            for one in sorted(set(schemes.values()))
        }
        return {group: found[one][group] for group, one in schemes.items()}


def expected_speedup(linears: Sequence[LinearPlan], table: SpeedTable, tokens: int = DEFAULT_TOKENS) -> Expected:
    """`expected_times` of planned linears."""
    return expected_times(timed_linears(linears), table, tokens)


def timed_linears(linears: Sequence[LinearPlan]) -> list[TimedLinear]:
    """What the times of planned linears depend on."""
    return [TimedLinear(one.linear, one.stored.shape, one.scheme, one.pattern, one.kept) for one in linears]


def expected_times(linears: Sequence[TimedLinear], table: SpeedTable, tokens: int = DEFAULT_TOKENS) -> Expected:
    """The times of all linears of a model by the table: 2:L on sparse kernels, 2:inf on dense ones.

    A pattern that is slower than dense counts with its own time, although the backends then run it dense.
    NotMeasuredError if no linear has 8 bits by row, or the table has no times of a scheme, a pattern or that number of
    tokens.
    """
    groups = TimedGroups.of(linears)
    found = [(times, groups.timed[group][1]) for group, times in groups.times(table, tokens).items()]
    return Expected(
        gpu=table.gpu,
        tokens=tokens,
        dense=sum(times.dense for times, _ in found),
        planned=sum(times.of(pattern) for times, pattern in found),
        in_table=sum(times.in_table[pattern] if pattern.prunes else times.dense for times, pattern in found),
        ideal=sum(times.dense / (pattern.ideal_speedup or 1) for times, pattern in found),
        measured=tuple(dict.fromkeys(times.measured for times, _ in found)),
        left_out=tuple(one.linear.name for one in linears if not one.timed),
    )
