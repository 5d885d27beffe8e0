"""The expected speed-up of a planned model, by a table of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.patterns import Pattern
from ..core.schemes import Scheme
from ..errors import InputError
from ..formats.slide import Slide
from ..models.architecture import Linear
from .fused import fuse, group_times
from .rows import Shape
from .speed import DEFAULT_TOKENS, SpeedTable

if TYPE_CHECKING:
    from ..plan.linear import LinearPlan


@dataclass(frozen=True)
class Expected:
    """Expected times of a model's 8-bit linears at `tokens` tokens, all layers together, in the table's unit.

    dense: none of them pruned. planned: with the patterns of the plan. measured: the GPUs, models and numbers of tokens
    behind the times. left_out: linears in 16 bits or more, for which no table has times.
    """

    gpu: str
    tokens: int
    dense: float
    planned: float
    measured: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """Of the linears over dense 8-bit ones, without attention, norms and the head."""
        return self.dense / self.planned


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


def expected_speedup(linears: Sequence[LinearPlan], table: SpeedTable, tokens: int = DEFAULT_TOKENS) -> Expected:
    """`expected_times` of planned linears."""
    planned = [TimedLinear(one.linear, one.stored.shape, one.scheme, one.pattern, one.kept) for one in linears]
    return expected_times(planned, table, tokens)


def expected_times(linears: Sequence[TimedLinear], table: SpeedTable, tokens: int = DEFAULT_TOKENS) -> Expected:
    """The times of all linears of a model by the table: 2:L on sparse kernels, 2:inf on dense ones.

    A pattern that is slower than dense counts with its own time, although the backends then run it dense.
    InputError if no linear is quantized, or the table has no times of a scheme, a pattern or that number of tokens.
    """
    known = {one.linear: one for one in linears}
    groups = fuse({one.linear: one.shape for one in linears})
    # Fused linears are treated alike, so the first one's scheme and pattern are the group's.
    first = [known[group.linears[0]] for group in groups]
    schemes = sorted({one.scheme.name for one in first if one.timed})
    if not schemes:
        raise InputError("no linear is quantized, so there is nothing to expect", hint="--scheme int8 or fp8")
    by_scheme = {scheme: group_times(groups, table, scheme, tokens) for scheme in schemes}
    found = [(by_scheme[one.scheme.name][at], one.pattern) for at, one in enumerate(first) if one.timed]
    return Expected(
        gpu=table.gpu,
        tokens=tokens,
        dense=sum(times.dense for times, _ in found),
        planned=sum(times.of(pattern) for times, pattern in found),
        measured=tuple(dict.fromkeys(times.measured for times, _ in found)),
        left_out=tuple(one.linear.name for one in linears if not one.timed),
    )
