"""The expected speed-up of a planned model, by a table of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..formats.slide import Slide
from .fused import fuse, group_times
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


def expected_speedup(linears: Sequence[LinearPlan], table: SpeedTable, tokens: int = DEFAULT_TOKENS) -> Expected:
    """The times of all linears of a model by the table: 2:L on sparse kernels, 2:inf on dense ones.

    A pattern that is slower than dense counts with its own time, although the backends then run it dense.
    InputError if no linear is quantized, or the table has no times of a scheme, a pattern or that number of tokens.
    """
    plans = {plan.linear: plan for plan in linears}
    groups = fuse({plan.linear: plan.stored.shape for plan in linears})
    # Fused linears have equal plans, so the first one's is the group's.
    first = [plans[group.linears[0]] for group in groups]
    schemes = sorted({plan.scheme.name for plan in first if _timed(plan)})
    if not schemes:
        raise InputError("no linear is quantized, so there is nothing to expect", hint="--scheme int8 or fp8")
    by_scheme = {scheme: group_times(groups, table, scheme, tokens) for scheme in schemes}
    found = [
        (by_scheme[plan.scheme.name][submodule], plan.pattern) for submodule, plan in enumerate(first) if _timed(plan)
    ]
    return Expected(
        gpu=table.gpu,
        tokens=tokens,
        dense=sum(times.dense for times, _ in found),
        planned=sum(times.of(pattern) for times, pattern in found),
        measured=tuple(dict.fromkeys(times.measured for times, _ in found)),
        left_out=tuple(plan.linear.name for plan in linears if not _timed(plan)),
    )


def _timed(plan: LinearPlan) -> bool:
    """Whether the table may have times: of linears that sparse kernels for windows run."""
    return not plan.kept and Slide().stores(plan.scheme, whole_groups=plan.pattern.whole_groups)
