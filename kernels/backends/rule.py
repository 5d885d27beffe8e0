"""The rule by which `auto` chooses: never slower than the dense kernels of the host program, from measured times alone.

No device, no clock: times and facts in, a route out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

BUCKETS = tuple(1 << octave for octave in range(15))
"""The numbers of tokens that are measured, 1 to 16384. A bucket speaks for the numbers from the one below it on."""
GAIN = 1.02
"""What a way must gain in a bucket to run there instead of the host's dense kernel, and a route over a simpler one."""

Times = Mapping[str, Mapping[int, float | None]]
"""Microseconds by way and bucket; None where the way was tried and could not run."""


@dataclass(frozen=True)
class Way:
    """What the rule knows of a backend.

    form: of the prepared weight that it reads. nbytes: of that. most: the most tokens that it runs; None for any.
    """

    name: str
    form: str
    nbytes: int
    most: int | None = None

    def runs(self, tokens: int) -> bool:
        return self.most is None or tokens <= self.most


@dataclass(frozen=True)
class Route:
    """Which way runs how many tokens: (most tokens, way), ascending; the last runs all that are more (most None)."""

    steps: tuple[tuple[int | None, str], ...]

    @classmethod
    def only(cls, way: str) -> Route:
        return cls(((None, way),))

    @classmethod
    def of(cls, ways: Mapping[int, str], rest: str) -> Route:
        """ways: by bucket. rest: for more tokens than the largest bucket."""
        steps: list[tuple[int | None, str]] = []
        for bucket, way in [*sorted(ways.items()), (None, rest)]:
            if steps and steps[-1][1] == way:
                steps.pop()
            steps.append((bucket, way))
        return cls(tuple(steps))

    @classmethod
    def parse(cls, text: str) -> Route:
        """The inverse of `text`. ValueError if it is none."""
        *limited, rest = text.split(",")
        pairs = [word.split(":") for word in limited]
        steps = [(int(most), way) for way, most in pairs]
        if ":" in rest or not rest or [most for most, _ in steps] != sorted({most for most, _ in steps}):
            raise ValueError(f"{text!r} is no route")
        return cls((*steps, (None, rest)))

    @property
    def text(self) -> str:
        """few:64,dense: up to 64 tokens by the way few, all others by dense."""
        return ",".join(way if most is None else f"{way}:{most}" for most, way in self.steps)

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(way for _, way in self.steps))

    def way(self, tokens: int) -> str:
        return next(way for most, way in self.steps if most is None or tokens <= most)

    def __str__(self) -> str:
        words = [f"{way} up to {most} tokens" for most, way in self.steps[:-1]]
        return ", ".join([*words, f"{self.steps[-1][1]} for more" if words else self.steps[-1][1]])


@dataclass(frozen=True)
class Judged:
    """A route, its speed in every bucket as a multiple of the host's dense kernel, and the bytes that it keeps."""

    route: Route
    speedups: dict[int, float]
    nbytes: int

    @property
    def overall(self) -> float:
        """The geometric mean over the buckets: few tokens and many have equal weight."""
        return math.exp(sum(map(math.log, self.speedups.values())) / len(self.speedups))


def baseline(ways: Iterable[Way], times: Times, stock: Sequence[str]) -> dict[int, float]:
    """Microseconds of the best of the host's dense kernels, in the buckets where one ran. Empty if there is none, or if
    one was not tried in some bucket: then nothing can be promised."""
    dense = [way.name for way in ways if way.name in stock]
    if any(bucket not in times.get(name, {}) for name in dense for bucket in BUCKETS):
        return {}
    return _least(dense, times)


def _least(names: Iterable[str], times: Times) -> dict[int, float]:
    found = {bucket: [taken for name in names if (taken := times.get(name, {}).get(bucket))] for bucket in BUCKETS}
    return {bucket: min(taken) for bucket, taken in found.items() if taken}


def best_route(ways: Sequence[Way], times: Times, stock: Sequence[str], room: int) -> Judged | None:
    """The fastest route that the rule admits; None if the times do not suffice to promise anything.

    stock: the names of the host's dense kernels among the ways; if there is none among them, nothing is compared and
    the fastest route is the one. room: bytes of two prepared weights together; one may always be kept.
    """
    compared = any(way.name in stock for way in ways)
    least = baseline(ways, times, stock) if compared else _least([way.name for way in ways], times)
    if not least:
        return None
    best: Judged | None = None
    for kept in _kept(ways, stock, room):
        found = _route(kept, times, stock, least)
        # Not even a little slower in any bucket: measured again, times lie a few percent from those of the table.
        if found is None or (compared and min(found.speedups.values()) < 1):
            continue
        if best is None or found.overall > best.overall * GAIN:
            best = found
    return best


def _kept(ways: Sequence[Way], stock: Sequence[str], room: int) -> Iterator[list[Way]]:
    """The ways that read one prepared weight, or two of them; simple ones and the host's own first."""
    forms = {way.form: way.nbytes for way in ways}
    own = {way.form for way in ways if way.name in stock}
    order = sorted(forms, key=lambda form: form not in own)
    yield from ([way for way in ways if way.form == form] for form in order)
    for pair in combinations(order, 2):
        if forms[pair[0]] + forms[pair[1]] <= room:
            yield [way for way in ways if way.form in pair]


def _route(ways: Sequence[Way], times: Times, stock: Sequence[str], least: Mapping[int, float]) -> Judged | None:
    """The route through these ways that is fastest in each bucket; None if they do not run all of them."""
    rest = [way.name for way in ways if way.most is None]
    if not rest:
        return None
    chosen: dict[int, str] = {}
    speedups: dict[int, float] = {}
    for bucket in BUCKETS:
        if bucket not in least:  # too many tokens for this memory: the host's own, or what ran the last bucket
            chosen[bucket] = next((name for name in rest if name in stock), chosen.get(bucket // 2, rest[0]))
            continue
        able = {way.name: taken for way in ways if way.runs(bucket) and (taken := times.get(way.name, {}).get(bucket))}
        if not able:
            return None
        # The host's own unless another gains on it: a few percent are noise.
        fastest = min(able, key=lambda name: able[name])
        dense = min((name for name in able if name in stock), key=lambda name: able[name], default=fastest)
        chosen[bucket] = fastest if able[fastest] * GAIN <= able[dense] else dense
        speedups[bucket] = least[bucket] / able[chosen[bucket]]
    final = chosen[BUCKETS[-1]]
    route = Route.of(chosen, final if final in rest else rest[0])
    nbytes = sum({way.form: way.nbytes for way in ways if way.name in route.ways}.values())
    return Judged(route, speedups, nbytes)
