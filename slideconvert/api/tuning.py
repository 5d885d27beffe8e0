"""Fill the tables of times for the linears of a checkpoint or a model, so that loading it measures nothing."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..kernels.backends import choose as choosing
from ..kernels.backends.base import Backend
from ..kernels.backends.choose import TORCH, Host, Settings, candidates, judge, stock_first
from ..kernels.backends.measure import Wanted, fill, missing
from ..kernels.backends.rule import BUCKETS, Way, baseline
from ..kernels.backends.table import Key, Table, key_of, table_of
from ..kernels.slide_spec import SlideSpec
from ..progress import Progress
from .options import TuneOptions
from .settings import choose_device
from .tuned_linears import Linears, linears_of

STOCK_MODULE = "slideconvert.runtime.vllm_stock"
"""Imported where vLLM is, and only when it is tuned for."""


@dataclass(frozen=True)
class Tuned:
    """What one linear runs on. stock, chosen: microseconds by bucket, of the host's best dense kernel and of what runs;
    ways: what runs, by bucket. Empty where the times do not suffice yet; why then says so."""

    linear: str
    names: list[str]
    route: str
    nbytes: int
    stock: dict[int, float]
    chosen: dict[int, float]
    ways: dict[int, str]

    @property
    def speedups(self) -> dict[int, float]:
        return {bucket: taken / self.chosen[bucket] for bucket, taken in self.stock.items() if bucket in self.chosen}


@dataclass(frozen=True)
class Tuning:
    """key: of the table. measured, left: times that were measured now, and that are still missing."""

    key: Key
    linears: list[Tuned]
    measured: int
    left: int
    seconds: float


def tune(
    ckpt: Path | None, options: TuneOptions, progress: Progress, now: Callable[[], float] = time.monotonic
) -> Tuning:
    """Measure what no table has, and keep it. InputError for linears that cannot be, and without a GPU."""
    linears = linears_of(ckpt, options)
    device = torch.device(choose_device(options.device))
    if device.type != "cuda":
        raise InputError(
            "there is no CUDA GPU here to measure on", hint="run tune on the machine that serves the model"
        )
    with host_of(options.host or TORCH.name) as host:
        return measure(linears, device, host, math.inf if options.budget is None else options.budget, progress, now)


def measure(
    linears: Linears, device: torch.device, host: Host, seconds: float, progress: Progress, now: Callable[[], float]
) -> Tuning:
    """Fill the table of this device and host for so many seconds."""
    table, started = table_of(key_of(device, host.name, host.version)), now()
    ways = {spec: candidates(spec, device, host) for spec in linears}
    todo = {spec: missing(spec, stock_first(some, host), table, again=True) for spec, some in ways.items()}
    counted = _Counter(progress, _distinct(todo))
    for spec in linears:
        # Asked again: the dense ways of another pattern of this shape may have been measured by now.
        wanted = missing(spec, stock_first(ways[spec], host), table, again=True)
        if wanted and (remaining := seconds - (now() - started)) > 0:
            clock = choosing.CLOCK(spec, device)
            fill(spec, _untried(wanted, counted), table, clock, seconds=remaining, now=now, told=counted.add)
            clock.close()
    left = sum(len(missing(spec, some, table)) for spec, some in ways.items())
    found = [_tuned(spec, names, ways[spec], table, host) for spec, names in linears.items()]
    return Tuning(table.key, found, counted.done, left, now() - started)


class _Counter:
    """Tells how many of all measurements are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self.done = progress, total, 0
        self.tried: set[tuple[str, str, int]] = set()

    def add(self, count: int) -> None:
        self.done += count
        self._progress("tuning", self.done, max(self._total, self.done))


def _untried(wanted: list[Wanted], counted: _Counter) -> Iterator[Wanted]:
    """What was not tried in this run: what cannot run stays without a time."""
    for one in wanted:
        name = (one.way.timed_as(one.way.spec), one.way.name, one.bucket)
        if name not in counted.tried:
            counted.tried.add(name)
            yield one


def _distinct(todo: dict[SlideSpec, list[Wanted]]) -> int:
    return len({(one.way.timed_as(spec), one.way.name, one.bucket) for spec, some in todo.items() for one in some})


def _tuned(spec: SlideSpec, names: list[str], ways: list[Backend], table: Table, host: Host) -> Tuned:
    times = {way.name: table.of_way(spec, way) for way in ways}
    stock = baseline([Way(way.name, way.form, way.nbytes, way.most_tokens) for way in ways], times, host.stock)
    found = judge(spec, ways, table, Settings(), host)
    if found is None:
        return Tuned(str(spec), names, "", 0, stock, {}, {})
    by_bucket = {bucket: found.route.way(bucket) for bucket in BUCKETS}
    chosen = {bucket: taken for bucket, way in by_bucket.items() if (taken := times[way].get(bucket))}
    return Tuned(str(spec), names, found.route.text, found.nbytes, stock, chosen, by_bucket)


def coverage(linears: Linears, device: torch.device, host: Host) -> tuple[int, int]:
    """How many of these linears load without measuring, of how many that are chosen by measured times."""
    table = table_of(key_of(device, host.name, host.version))
    ways = {spec: candidates(spec, device, host) for spec in linears}
    chosen = {spec: some for spec, some in ways.items() if len(some) > 1}
    return sum(not missing(spec, some, table) for spec, some in chosen.items()), len(chosen)


@contextmanager
def host_of(name: str) -> Iterator[Host]:
    """The program of this name, and what its kernels need around them. InputError if it is not installed."""
    if name == TORCH.name:
        yield TORCH
        return
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed here", hint="install it, or tune with --host transformers")
    with redirect_stdout(sys.stderr):  # where vLLM's log then goes: stdout is for results
        stock: Any = importlib.import_module(STOCK_MODULE)
    with stock.standing_alone():
        yield stock.HOST
