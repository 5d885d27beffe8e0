"""Two results beside each other: how many times faster the second is, and whether that is more than their spread."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .results import AnyRow, Results


@dataclass(frozen=True)
class Ratio:
    """A case in both. ratio: seconds of A over those of B: above 1, B is faster. apart: whether the samples of the two
    do not overlap."""

    a: AnyRow
    b: AnyRow

    @property
    def ratio(self) -> float:
        return self.a.seconds[1] / self.b.seconds[1]

    @property
    def apart(self) -> bool:
        return self.a.seconds[2] < self.b.seconds[0] or self.b.seconds[2] < self.a.seconds[0]


@dataclass(frozen=True)
class Group:
    """All cases of a label: a model, what it ran in, and how. mean: geometric. apart: cases whose samples do not
    overlap."""

    label: tuple[str, ...]
    cases: int
    mean: float
    least: float
    most: float
    apart: int


@dataclass(frozen=True)
class Comparison:
    """level: of both. machines: what differs between the two, by name. only_a, only_b: cases that the other lacks, or
    that failed there."""

    level: str
    ratios: list[Ratio]
    machines: dict[str, tuple[Any, Any]]
    only_a: int
    only_b: int

    @property
    def groups(self) -> list[Group]:
        """By label, in order of the results."""
        found: dict[tuple[str, ...], list[Ratio]] = {}
        for one in self.ratios:
            found.setdefault(one.a.label, []).append(one)
        return [_group(label, some) for label, some in found.items()]

    def to_json(self) -> dict[str, Any]:
        """What `bench compare --json` prints."""
        ratios = [{**asdict(one.a.case), "ratio": one.ratio, "apart": one.apart} for one in self.ratios]
        machines = {name: list(pair) for name, pair in self.machines.items()}
        groups = [asdict(group) for group in self.groups]
        return {
            "machines": machines, "groups": groups, "only_a": self.only_a, "only_b": self.only_b, "ratios": ratios,
        }  # fmt: skip


def _group(label: tuple[str, ...], some: list[Ratio]) -> Group:
    ratios = [one.ratio for one in some]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return Group(label, len(some), mean, min(ratios), max(ratios), sum(one.apart for one in some))


def compare(a: Results, b: Results) -> Comparison:
    """Cases that were timed in both. InputError if they are of different levels, or have no case in common."""
    if a.level != b.level:
        raise InputError(
            f"{a.folder} is of bench {a.level}, {b.folder} of bench {b.level}", hint="compare results of one command"
        )
    left, right = ({key: row for key, row in one.rows.items() if row.measured} for one in (a, b))
    ratios = [Ratio(row, right[key]) for key, row in left.items() if key in right]
    if not ratios:
        raise InputError(f"{a.folder} and {b.folder} have no case in common", hint="measure the same models and tokens")
    names = {**a.machine, **b.machine}
    machines = {
        name: (a.machine.get(name), b.machine.get(name)) for name in names if a.machine.get(name) != b.machine.get(name)
    }
    return Comparison(a.level, ratios, machines, len(left) - len(ratios), len(right) - len(ratios))
