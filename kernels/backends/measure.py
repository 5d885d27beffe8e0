"""Measure ways of running a linear, in every bucket of tokens: device time of whole calls in replayed CUDA graphs.

Few tokens are measured behind a kernel that writes the activations, as a norm or an activation function does in a
model: launches that overlap the one before them would gain more from a linear before them, which no model has there.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from ..autotune import may_time
from ..spec import LinearSpec
from .base import Backend, Prepared
from .rule import BUCKETS
from .table import Table, save

LEAST_MILLISECONDS = 1.0
"""The least work in one timed replay."""
REPLAYS = 9
WARM_MILLISECONDS = 30.0
"""Work before the first measurement of a way: while its weight is prepared the GPU idles, and lowers its clocks."""
BEYOND_CACHE = 2.5
"""Weights take turns so that together they are this many times the GPU's L2 cache: a model finds none of them there."""
MOST_WEIGHTS = 64
"""So many at most: of small ones it would take thousands, and their times are those of launches anyway."""
FEW_TOKENS = 256
"""With more tokens, reading the weight is a small part of the time."""
SHARE_OF_MEMORY = 2
"""Measuring may use one part in this many of the free memory."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""By bytes of an element."""
LEAST_MICROSECONDS = 0.1
"""Of a call: what is left of less, beside the kernel before it, is noise, and a table takes no time of 0."""

logger = logging.getLogger("slidesparse")

Told = Callable[[int], None]
"""Called with the number of times that were measured or found."""


class Clock(Protocol):
    """Times ways of running one linear."""

    def __call__(self, way: Backend, tokens: int) -> float | None:
        """Microseconds of a call; None if it cannot run here. Calls with one way follow each other."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(frozen=True)
class Wanted:
    """A time that is not in the table."""

    way: Backend
    bucket: int


def missing(spec: LinearSpec, ways: Sequence[Backend], table: Table, *, again: bool = False) -> list[Wanted]:
    """What a choice among these ways needs and the table lacks, way by way. again: also what could not run before."""
    wanted = []
    for way in ways:
        known = table.of_way(spec, way)
        for bucket in BUCKETS:
            tried = known.get(bucket) is not None if again else bucket in known
            if not tried and (way.most_tokens is None or bucket <= way.most_tokens):
                wanted.append(Wanted(way, bucket))
    return wanted


def fill(
    spec: LinearSpec,
    wanted: Iterable[Wanted],
    table: Table,
    clock: Clock,
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    told: Told = lambda count: None,
) -> bool:
    """Measure into the table; whether all was done in so many seconds. Saved after every way, and if interrupted.

    Stops after the measurement during which the time runs out. Measures nothing while a CUDA graph is captured or
    torch.compile traces.
    """
    if not may_time():
        return False
    end, last = now() + seconds, None
    try:
        for one in wanted:
            if now() >= end:
                return False
            if last not in (None, one.way):
                save(table)
            last = one.way
            table.put(one.way.timed_as(spec), one.way.timed_name(), one.bucket, clock(one.way, one.bucket))
            told(1)
    finally:
        if last is not None:
            save(table)
    return True


class GraphClock:
    """Times ways of running linears of one spec on a CUDA device: bfloat16 activations, random weights of the pattern.

    A way that fails or lacks memory is reported once in the log, and has no time.
    """

    def __init__(self, spec: LinearSpec, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self._way: Backend | None = None
        self._weights: list[Prepared] = []
        self._failed: set[tuple[str, str]] = set()
        self._writing: dict[int, float] = {}

    def __call__(self, way: Backend, tokens: int) -> float | None:
        if _bytes(self._spec, tokens) > torch.cuda.mem_get_info(self._device)[0] // SHARE_OF_MEMORY:
            return None
        try:
            with torch.cuda.device(self._device), torch.inference_mode():
                return self._time(way, tokens)
        except torch.cuda.OutOfMemoryError:
            reason = "out of memory"
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
        if (way.name, reason) not in self._failed:
            logger.warning(
                "%s: %s cannot run %d tokens and has no part in them: %s", self._spec, way.name, tokens, reason
            )
        self._failed.add((way.name, reason))
        self.close()
        return None

    def close(self) -> None:
        self._way, self._weights = None, []
        torch.cuda.empty_cache()

    def _time(self, way: Backend, tokens: int) -> float:
        warm = 0.0
        if self._way is not way:
            self.close()
            warm = WARM_MILLISECONDS
            self._weights = [way.prepare(self._spec.random(self._device))]
            self._way = way
        if tokens <= FEW_TOKENS:
            self._grow(way.nbytes)
        else:
            del self._weights[1:]
        x = torch.randn(tokens, self._spec.columns, dtype=torch.bfloat16, device=self._device)

        def call(prepared: Prepared) -> Tensor:
            return way.run(x, prepared, None)

        if tokens > FEW_TOKENS:
            return median(replayed(call, self._weights, warm))
        return median(behind_a_writer(call, x, self._weights, warm, self._writing))

    def _grow(self, nbytes: int) -> None:
        while len(self._weights) < turns(nbytes, self._device):
            self._weights.append(tuple(tensor.clone() for tensor in self._weights[0]))


def _bytes(spec: LinearSpec, tokens: int) -> int:
    """Roughly the bytes of a call: activations, their codes (up to twice as many when lifted), sums, output."""
    return tokens * (4 * spec.columns + 6 * spec.rows)


def turns(nbytes: int, device: torch.device) -> int:
    """How many weights of so many bytes take turns."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_WEIGHTS, max(1, math.ceil(BEYOND_CACHE * cache / max(1, nbytes))))


def behind_a_writer(
    call: Callable[[Prepared], Any], x: Tensor, weights: Sequence[Prepared], warm: float, writing: dict[int, float]
) -> list[float]:
    """What a call adds to the time of a kernel that writes x [M, …], in microseconds, as `replayed`.

    writing: what that kernel takes alone, by M; filled here.
    """
    # As integers, which every dtype can be read as; added, as a graph executes copies as nodes of another kind.
    target, tokens = x.view(INTEGERS[x.itemsize]), x.shape[0]
    given = target.clone()

    def write() -> None:
        torch.add(given, 0, out=target)

    def both(prepared: Prepared) -> None:
        write()
        call(prepared)

    taken = replayed(both, weights, warm)
    if tokens not in writing:
        writing[tokens] = median(replayed(lambda _: write(), weights, 0.0))
    return [max(LEAST_MICROSECONDS, one - writing[tokens]) for one in taken]


def replayed(work: Callable[[Prepared], Any], weights: Sequence[Prepared], warm: float) -> list[float]:
    """Microseconds of device time that `work` takes for one weight, all in turn, in replays of a CUDA graph. warm:
    milliseconds of work before that."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def timed(run: Callable[[], Any]) -> float:
        events[0].record()
        run()
        events[1].record()
        events[1].synchronize()
        return float(events[0].elapsed_time(events[1]))

    def turn() -> None:
        for prepared in weights:
            work(prepared)

    def captured(rounds: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                turn()
        graph.replay()
        return graph

    turn()  # not in a graph: the first calls autotune, and load code
    graph, rounds = captured(1), 1
    # By the time of a replay: eager calls of few tokens take the host's time, which is longer.
    if (wanted := math.ceil(LEAST_MILLISECONDS / max(1e-3, timed(graph.replay)))) > 1:
        graph, rounds = captured(wanted), wanted
    while warm > 0:
        warm -= timed(graph.replay)
    return [timed(graph.replay) / (rounds * len(weights)) * 1e3 for _ in range(REPLAYS)]
