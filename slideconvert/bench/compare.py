"""Two results beside each other: how many times faster the second is, and whether that is more than their spread."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .case import Case, Times
from .results import Results


@dataclass(frozen=True)
class Ratio:
    """A case in both. ratio: times of A over those of B: above 1, B is faster. apart: whether the samples of the two do
    not overlap."""

    case: Case
    a: Times
    b: Times

    @property
    def ratio(self) -> float:
        return self.a.device / self.b.device

    @property
    def apart(self) -> bool:
        return self.a.high < self.b.low or self.b.high < self.a.low


@dataclass(frozen=True)
class Group:
    """All numbers of tokens and linears of one way. mean: geometric. apart: cases whose samples do not overlap."""

    model: str
    precision: str
    pattern: str
    way: str
    cases: int
    mean: float
    least: float
    most: float
    apart: int


@dataclass(frozen=True)
class Comparison:
    """machines: what differs between the two, by name. only_a, only_b: cases that the other lacks, or that failed
    there."""

    ratios: list[Ratio]
    machines: dict[str, tuple[Any, Any]]
    only_a: int
    only_b: int

    @property
    def groups(self) -> list[Group]:
        """By way, in order of the results."""
        found: dict[tuple[str, str, str, str], list[Ratio]] = {}
        for one in self.ratios:
            case = one.case
            found.setdefault((case.model, case.precision, case.pattern, case.way), []).append(one)
        return [_group(key, some) for key, some in found.items()]

    def to_json(self) -> dict[str, Any]:
        """What `bench compare --json` prints."""
        ratios = [{**asdict(one.case), "ratio": one.ratio, "apart": one.apart} for one in self.ratios]
        machines = {name: list(pair) for name, pair in self.machines.items()}
        groups = [asdict(group) for group in self.groups]
        return {
            "machines": machines, "groups": groups, "only_a": self.only_a, "only_b": self.only_b, "ratios": ratios,
        }  # fmt: skip


def _group(key: tuple[str, str, str, str], some: list[Ratio]) -> Group:
    ratios = [one.ratio for one in some]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return Group(*key, len(some), mean, min(ratios), max(ratios), sum(one.apart for one in some))


def compare(a: Results, b: Results) -> Comparison:
    """Cases that were timed in both. InputError if they are of different levels, or have no case in common."""
    if a.level != b.level:
        raise InputError(
            f"{a.folder} is of bench {a.level}, {b.folder} of bench {b.level}", hint="compare results of one command"
        )
    left, right = ({key: row for key, row in one.rows.items() if row.times} for one in (a, b))
    ratios = [
        Ratio(row.case, row.times, other)
        for key, row in left.items()
        if row.times and key in right and (other := right[key].times)
    ]
    if not ratios:
        raise InputError(f"{a.folder} and {b.folder} have no case in common", hint="measure the same models and tokens")
    names = {**a.machine, **b.machine}
    machines = {
        name: (a.machine.get(name), b.machine.get(name)) for name in names if a.machine.get(name) != b.machine.get(name)
    }
    return Comparison(ratios, machines, len(left) - len(ratios), len(right) - len(ratios))
