"""Time all cases of a suite: every way's output is compared with float64 before it is timed, and a failure is a row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..errors import OutputError
from ..kernels.backends.base import Prepared
from ..kernels.backends.choose import Host
from ..progress import Progress
from .case import DENSE, SQUARE, Case, Row
from .clock import Clock
from .machine import Sensors
from .results import Results
from .ways import Way, ways_of
from .weights import random_activations, random_weight

CHECKED_ROWS, CHECKED_TOKENS = 64, 16
"""Rows of the weight and tokens whose outputs are compared."""
LARGEST_ERROR = 2.0**-7
"""Of an output, relative in the norm. Rounding to bfloat16 alone may take 2^-8 of each; sums in FP8 and codes that
another kernel rounds the other way take less than as much again."""
SHARE_OF_MEMORY = 2
"""A case may use one part in this many of the free memory of a GPU."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """What is measured. models: their linears by name, N and K. squares: sizes of M = N = K."""

    level: str
    models: Mapping[str, Mapping[str, tuple[int, int]]]
    squares: tuple[int, ...]
    precisions: tuple[str, ...]
    patterns: tuple[str, ...]
    tokens: tuple[int, ...]

    def linears(self) -> Iterator[tuple[str, str, tuple[int, int], tuple[int, ...]]]:
        """Model, linear, its shape, and the numbers of tokens."""
        for model, linears in self.models.items():
            for linear, shape in linears.items():
                yield model, linear, shape, self.tokens
        for size in self.squares:
            yield f"{SQUARE}-{size}", SQUARE, (size, size), (size,)

    def cases(self, device: torch.device, host: Host) -> Iterator[tuple[Case, Way]]:
        """One precision of one model after another, so that tables of a run that ends early are whole."""
        for model, of_model in groupby(self.linears(), lambda one: one[0]):
            linears = list(of_model)
            for precision in self.precisions:
                for _, linear, shape, tokens in linears:
                    for pattern in (DENSE, *self.patterns):
                        for way in ways_of(precision, pattern, shape, self.level, device, host):
                            for count in tokens:
                                if way.most_tokens is None or count <= way.most_tokens:
                                    case = Case(self.level, model, linear, *shape, precision, pattern, way.name, count)
                                    yield case, way


@dataclass(frozen=True)
class Outcome:
    """measured, failed: rows that this run added. left: cases that it had no time for."""

    measured: int
    failed: int
    left: int


def measure(
    cases: Iterable[tuple[Case, Way]], results: Results, device: torch.device, clock: Clock, sensors: Sensors,
    progress: Progress, seconds: float, now: Callable[[], float] = time.monotonic,
) -> Outcome:  # fmt: skip
    """Time those that the results lack, for so many seconds. What is measured is saved, however the run ends.

    What failed before comes last: the GPU may be lost to it again. OutputError if it is lost.
    """
    every = [(case, way) for case, way in cases if not results.has(case, way.version)]
    every.sort(key=lambda one: one[0].key in results.rows)
    end, done, failed = now() + seconds, 0, 0
    try:
        for _, group in groupby(every, lambda one: (one[0].model, one[0].linear, one[0].precision, one[0].pattern)):
            some = list(group)
            if now() >= end:
                break
            weight = _Weight(some[0][0], device)
            for _, same in groupby(some, lambda one: one[1].name):
                bench = _Bench(weight, device, clock, sensors)
                for case, way in same:
                    if now() >= end:
                        break
                    row = bench.row(case, way)
                    results.add(row)
                    done, failed = done + 1, failed + bool(row.failure)
                    if row.failure and not clock.alive():
                        raise OutputError(
                            f"{device} is lost after {case.key}: {row.failure}",
                            hint="run again: what was measured is kept, and this case comes last",
                        )
                    progress("bench", done, len(every))
    finally:
        results.save()
    return Outcome(done - failed, failed, len(every) - done)


class _Weight:
    """The weight of a linear, made when it is first needed."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self._made: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._made is None:
            self._made = random_weight(self.case.rows, self.case.columns, self.case.pattern, self.device)
        return self._made


class _Bench:
    """Times one way of one linear for several numbers of tokens with one prepared weight."""

    def __init__(self, weight: _Weight, device: torch.device, clock: Clock, sensors: Sensors) -> None:
        self._weight, self._device, self._clock, self._sensors = weight, device, clock, sensors
        self._prepared: tuple[Tensor, ...] = ()
        self._weights: list[Prepared] = []

    def row(self, case: Case, way: Way) -> Row:
        """Timed, or failed: a kernel that cannot run, a wrong output and a lack of memory are rows."""
        try:
            with torch.inference_mode():
                return self._timed(case, way)
        except torch.cuda.OutOfMemoryError:
            reason = "out of memory"
            torch.cuda.empty_cache()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        logger.info("%s: %s", case.key, reason)
        return Row(case, None, way.version, failure=reason)

    def _timed(self, case: Case, way: Way) -> Row:
        needed = case.tokens * (5 * case.columns + 6 * case.rows)
        if self._device.type == "cuda" and needed > torch.cuda.mem_get_info(self._device)[0] // SHARE_OF_MEMORY:
            raise ValueError(f"too many tokens for the memory that is free: {needed / 1e9:.1f} GB are needed")
        if not self._prepared:
            self._prepared = way.prepare(self._weight())
        x = random_activations(case.tokens, case.columns, self._device)
        given = way.given(x, case.level)
        error = self._error(x, way, way.call(given, self._prepared))
        if not error <= LARGEST_ERROR:
            raise ValueError(f"wrong output: relative error {error:.2g}, allowed {LARGEST_ERROR:.2g}")
        self._repeat(way, self._clock.turns(sum(one.nbytes for one in self._prepared), case.tokens))
        self._sensors.taken()
        times = self._clock.time(lambda prepared: way.call(given, prepared), given[0], self._weights)
        return Row(case, times, way.version, error, *self._sensors.taken())

    def _repeat(self, way: Way, count: int) -> None:
        del self._weights[count:]
        if not self._weights:
            self._weights.append(self._prepared)
        while len(self._weights) < count:
            self._weights.append(way.copied(self._prepared, self._weight()))

    def _error(self, x: Tensor, way: Way, out: Tensor) -> float:
        """Of some outputs, those of the last tokens and rows among them."""
        weight = self._weight()
        rows = spread(weight.shape[0], CHECKED_ROWS, x.device)
        tokens = spread(x.shape[0], CHECKED_TOKENS, x.device)
        expected = way.expected(x[tokens], weight[rows])
        found = out[tokens][:, rows].double()
        return float((found - expected).norm() / expected.norm())


def spread(count: int, most: int, device: torch.device) -> Tensor:
    """At most `most` of `count` indices at equal distances, the first and the last among them."""
    chosen = min(count, most)
    # In integers: beside vLLM's linears the default dtype is bfloat16, which rounds 4095 to 4096.
    return torch.arange(chosen, device=device) * (count - 1) // max(1, chosen - 1)
