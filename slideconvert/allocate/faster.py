"""What would be faster than dense where a plan is slower: other patterns, numbers of tokens, GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..core.patterns import ALL
from ..errors import NotMeasuredError
from ..kernels.backends.rule import GAIN
from .expected import Expected, TimedGroups, TimedLinear, expected_times, timed_linears
from .gpus import BUNDLED
from .speed import SpeedTable

if TYPE_CHECKING:
    from ..plan.linear import LinearPlan

Key = TypeVar("Key", str, int)
EXCESS = 1.05
"""How far beyond its bound a published speed-up may lie for noise alone."""


@dataclass(frozen=True)
class Faster:
    """Speed-ups of at least GAIN over dense 8-bit linears.

    patterns: of one scheme and pattern for all linears that have times, on the same GPU at as many tokens, by "int8
    2:4". tokens: of the same plan at the numbers of tokens that were measured. gpus: of the same plan on other GPUs,
    but for those whose dense product is too slow to compare with.
    """

    patterns: Mapping[str, float]
    tokens: Mapping[int, float]
    gpus: Mapping[str, float]


def faster_than_dense(linears: Sequence[LinearPlan], expected: Expected, table: SpeedTable) -> Faster:
    """The ways out of a plan that is slower than dense by `table`, the best first."""
    timed = timed_linears(linears)
    return Faster(
        patterns=_best(_patterns(TimedGroups.of(timed), expected.tokens, table)),
        tokens=dict(sorted(_best(_tokens(timed, table)).items())),
        gpus=_best(_gpus(timed, expected)),
    )


def _best(found: Iterator[tuple[Key, float]]) -> dict[Key, float]:
    return dict(sorted(((key, gain) for key, gain in found if gain >= GAIN), key=lambda one: -one[1]))


def _patterns(groups: TimedGroups, tokens: int, table: SpeedTable) -> Iterator[tuple[str, float]]:
    for scheme in dict.fromkeys(row.scheme for row in table.rows):
        with suppress(NotMeasuredError):
            times = list(groups.times(table, tokens, scheme).values())
            dense = sum(one.dense for one in times)
            for pattern in ALL:
                if pattern.prunes and all(pattern in one.sparse for one in times):
                    yield f"{scheme} {pattern}", dense / sum(one.of(pattern) for one in times)


def _tokens(linears: Sequence[TimedLinear], table: SpeedTable) -> Iterator[tuple[int, float]]:
    for tokens in sorted({row.tokens for row in table.rows}):
        with suppress(NotMeasuredError):
            yield tokens, expected_times(linears, table, tokens).speedup


def _gpus(linears: Sequence[TimedLinear], expected: Expected) -> Iterator[tuple[str, float]]:
    for gpu in BUNDLED:
        if gpu != expected.gpu:
            with suppress(NotMeasuredError):
                found = expected_times(linears, SpeedTable.load(gpu), expected.tokens)
                if found.table_speedup <= found.bound * EXCESS:
                    yield gpu, found.speedup
