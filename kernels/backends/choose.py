"""Which backend runs a linear, and why. Chosen once per spec and device, by the rule (rule.py) on measured times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..spec import LinearSpec
from . import base
from .base import Backend, shared
from .cuda import indexed
from .cusparselt import Cusparselt
from .dense import Dense
from .few_tokens import FewDense, FewSparse
from .group_gemm import GroupGemmBackend
from .int_mm import IntMm
from .many_tokens import ManySparse
from .measure import Clock, GraphClock, fill, missing
from .reference import GroupReference, SlideReference
from .routed import Routed
from .rule import Judged, Route, Way, best_route
from .table import Table, key_of, table_of

BACKENDS: tuple[type[Backend], ...] = (
    Cusparselt, Dense, IntMm, FewSparse, FewDense, ManySparse, GroupGemmBackend, SlideReference, GroupReference,
)  # fmt: skip
"""In order of preference. The last that runs a kind of spec is its reference, which runs it anywhere."""
AUTO, BOTH = "auto", "both"
"""Words for a choice: by the rule with the memory that is allowed, or with as much as two prepared weights take."""
LOAD_SECONDS = 120.0
"""How long a process may measure while it loads, in all; what is missing then runs on the host's dense kernel."""

logger = logging.getLogger("slidesparse")


@dataclass(frozen=True)
class Host:
    """A program that runs linears. stock: the names of its dense kernels, which the rule compares with. ways: backends
    that exist in it alone. version: of it, where its dense kernels are its own."""

    name: str
    stock: tuple[str, ...]
    ways: tuple[type[Backend], ...] = ()
    version: str = ""


TORCH = Host("transformers", (Dense.name, IntMm.name))
"""torch.nn modules: the dense alternatives are torch's own products and our fused one."""


@dataclass(frozen=True)
class Settings:
    """What a user asks for. backend: auto, both, or the name of one. memory: what a second prepared weight may take, as
    a share of the packed weight. measure: the seconds that loading may spend on measuring what no table has."""

    backend: str = AUTO
    memory: float = 0.0
    measure: float = LOAD_SECONDS


@dataclass(frozen=True)
class BackendChoice:
    """A backend for a linear. why: a sentence for people."""

    backend: Backend
    why: str


@dataclass
class Stopwatch:
    """The seconds that this process has spent on measuring while it loads."""

    now: Callable[[], float] = time.monotonic
    spent: float = 0.0


STOPWATCH = Stopwatch()
CLOCK: Callable[[LinearSpec, torch.device], Clock] = GraphClock


@cache
def backends_for(kind: type[LinearSpec], host: Host = TORCH) -> dict[str, type[Backend]]:
    """The backends that run a kind of spec in a program, by name, in order of preference."""
    return {backend.name: backend for backend in (*host.ways, *BACKENDS) if backend.runs is kind}


_HOSTS: dict[str, Host] = {}


def named(name: str, spec: LinearSpec, device: torch.device, host: Host | None = None) -> Backend:
    """The backend of this process whose `name` this is: of one way, or of a route. ValueError if there is none.

    host: the program, where it was not asked to choose before.
    """
    if host is not None:
        _HOSTS[host.name] = host
    key = (name, spec.text, device)
    if key not in base.NAMED:
        hosts = (TORCH, *_HOSTS.values())
        kind: Any = type(spec)
        known = {way: one for host in hosts for way, one in backends_for(kind, host).items()}
        route = Route.only(name) if name in known else Route.parse(name)
        if unknown := set(route.ways) - known.keys():
            raise ValueError(f"unknown backend {', '.join(unknown)}")
        ways = {way: shared(known[way], spec, device) for way in route.ways}
        base.NAMED[key] = ways[name] if name in ways else Routed(spec, device, route, ways)
    return base.NAMED[key]


@cache
def choose(spec: LinearSpec, device: torch.device, wanted: str | Settings = AUTO, host: Host = TORCH) -> BackendChoice:
    """wanted: auto, both, the name of a backend, or these with the rest of the settings. ValueError if the backend is
    unknown or cannot run this linear there."""
    settings = Settings(wanted) if isinstance(wanted, str) else wanted
    _HOSTS[host.name] = host
    device = indexed(device)
    known = backends_for(type(spec), host)
    if settings.backend not in (AUTO, BOTH):
        return _asked(spec, device, settings.backend, known)
    *kinds, reference = known.values()
    if device.type != "cuda":
        return BackendChoice(shared(reference, spec, device), f"plain torch: the device is {device.type}")
    good, refused = _sorted_out(spec, device, kinds)
    if not good:
        why = "plain torch, slow: " + "; ".join(f"{kind.name}: {refusal}" for kind, refusal in refused.items())
        logger.warning("%s: %s", spec, why)
        return BackendChoice(shared(reference, spec, device), why)
    if len(good) > 1:
        return _by_the_rule(spec, [shared(kind, spec, device) for kind in good], settings, host)
    reasons = {kind: refused.get(kind) or kind.drawback(spec) for kind in kinds if kind is not good[0]}
    why = "; ".join(f"not {kind.name}: {reason}" for kind, reason in reasons.items()) or f"the device is {device.type}"
    if any(kinds.index(kind) < kinds.index(good[0]) for kind in refused):
        logger.warning("%s runs on %s: %s", spec, good[0].name, why)
    return BackendChoice(shared(good[0], spec, device), why)


def candidates(spec: LinearSpec, device: torch.device, host: Host) -> list[Backend]:
    """The ways among which the rule chooses for a linear on a CUDA device."""
    _HOSTS[host.name] = host
    device, kinds = indexed(device), list(backends_for(type(spec), host).values())[:-1]
    return [shared(kind, spec, device) for kind in _sorted_out(spec, device, kinds)[0]]


def _sorted_out(
    spec: LinearSpec, device: torch.device, kinds: list[type[Backend]]
) -> tuple[list[type[Backend]], dict[type[Backend], str]]:
    """Those that can run a linear there, without drawbacks if there are such; and the refusals of the others."""
    kinds = [kind for kind in kinds if not kind.on_request]
    refused = {kind: refusal for kind in kinds if (refusal := kind.refusal(spec, device))}
    able = [kind for kind in kinds if kind not in refused]
    for some in ([kind for kind in able if not kind.drawback(spec)], able):
        if any(kind.most_tokens is None for kind in some):
            return some, refused
    return [], refused


def _asked(spec: LinearSpec, device: torch.device, name: str, known: dict[str, type[Backend]]) -> BackendChoice:
    if name not in known:
        raise ValueError(f"unknown backend {name!r}, known: {AUTO}, {BOTH}, {', '.join(known)}")
    if refusal := known[name].refusal(spec, device):
        raise ValueError(f"backend {name} cannot run {spec} on {device}: {refusal}; backend auto takes what can")
    if most := known[name].most_tokens:
        raise ValueError(f"backend {name} runs up to {most} tokens alone; backend auto combines it with others")
    why = "asked for"
    if drawback := known[name].drawback(spec):
        why += f"; {drawback}"
        logger.warning("%s runs on %s: %s", spec, name, why)
    return BackendChoice(shared(known[name], spec, device), why)


def _by_the_rule(spec: LinearSpec, ways: Sequence[Backend], settings: Settings, host: Host) -> BackendChoice:
    device = ways[0].device
    table = table_of(key_of(device, host.name, host.version))
    ordered = stock_first(ways, host)
    lacking = missing(spec, ordered, table)
    note = ""
    if lacking and (seconds := settings.measure - STOPWATCH.spent) > 0:
        note = _measure(spec, lacking, table, seconds)
    found = judge(spec, ways, table, settings, host)
    if found is None:
        way = next(one for one in ordered if one.most_tokens is None)
        why = f"no measured times of {spec} for {host.name}{note} (slideconvert tune measures them)"
        return BackendChoice(way, why)
    return BackendChoice(named(found.route.text, spec, device), describe(found, ways, host) + note)


def stock_first(ways: Sequence[Backend], host: Host) -> list[Backend]:
    """The order to measure in: without the times of the host's dense kernels nothing can be promised."""
    return sorted(ways, key=lambda way: way.name not in host.stock)


def judge(spec: LinearSpec, ways: Sequence[Backend], table: Table, settings: Settings, host: Host) -> Judged | None:
    """The route by the rule, from the times of a table; None if they do not suffice."""
    facts = [Way(way.name, way.form, way.nbytes, way.most_tokens) for way in ways]
    times = {way.name: table.of_way(spec, way) for way in ways}
    return best_route(facts, times, host.stock, room(facts, settings))


def room(ways: Sequence[Way], settings: Settings) -> int:
    """The bytes of two prepared weights: no more than the largest alone has, unless more memory is allowed. All of it
    (1.0) is enough for any two: sparse forms differ from the packed weight by padding and metadata."""
    sizes = {way.form: way.nbytes for way in ways}
    if settings.backend == BOTH:
        return sum(sizes.values())
    *_, second, largest = [0, *sorted(sizes.values())]
    return int(largest + settings.memory * second)


def _measure(spec: LinearSpec, lacking: Any, table: Table, seconds: float) -> str:
    """Measure what is lacking; what to say of it."""
    clock, started = CLOCK(spec, lacking[0].way.device), STOPWATCH.now()
    try:
        done = fill(spec, lacking, table, clock, seconds=seconds, now=STOPWATCH.now)
    finally:
        clock.close()
    taken = STOPWATCH.now() - started
    STOPWATCH.spent += taken
    note = f"measured in {taken:.1f} s" if done else f"not measured to the end in {taken:.1f} s"
    logger.info("%s: %s", spec, note)
    return f"; {note}"


def describe(found: Judged, ways: Sequence[Backend], host: Host) -> str:
    """The route, its speed against the host's dense kernel, and what a second prepared weight costs."""
    shown = {bucket: found.speedups[bucket] for bucket in (1, 16, 64, 1024, 16384) if bucket in found.speedups}
    stock = [way.name for way in ways if way.name in host.stock]
    text = str(found.route)
    if stock and not set(found.route.ways) <= set(host.stock):
        speeds = ", ".join(f"{speedup:.2f}x at {bucket}" for bucket, speedup in shown.items())
        text += f"; against {' and '.join(stock)}, measured: {speeds} tokens"
    elif stock:
        text += "; measured: nothing is faster"
    sizes = {way.form: way.nbytes for way in ways if way.name in found.route.ways}
    if len(sizes) > 1:
        text += f"; two prepared weights, {(found.nbytes - max(sizes.values())) / 1e6:.1f} MB more"
    return text
