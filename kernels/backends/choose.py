"""Which backend runs a linear, and why. Chosen once per spec and device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch

from ..spec import LinearSpec
from .base import Backend, shared
from .benchmark import compare
from .cuda import indexed
from .cusparselt import Cusparselt
from .dense import Dense
from .dispatch import Dispatch
from .group_gemm import GroupGemmBackend
from .reference import GroupReference, SlideReference

BACKENDS: tuple[type[Backend], ...] = (
    Cusparselt, Dense, Dispatch, GroupGemmBackend, SlideReference, GroupReference,
)  # fmt: skip
"""In order of preference. The last that runs a kind of spec is its reference, which runs it anywhere."""

logger = logging.getLogger("slidesparse")


@dataclass(frozen=True)
class BackendChoice:
    """A backend for a linear. why: a sentence for people."""

    backend: Backend
    why: str


@cache
def backends_for(kind: type[LinearSpec]) -> dict[str, type[Backend]]:
    """The backends that run a kind of spec, by name, in order of preference."""
    return {backend.name: backend for backend in BACKENDS if backend.runs is kind}


@cache
def choose(spec: LinearSpec, device: torch.device, wanted: str = "auto") -> BackendChoice:
    """wanted: auto, or the name of a backend. ValueError if it is unknown or cannot run this linear there."""
    device = indexed(device) if device.type == "cuda" else device
    known = backends_for(type(spec))
    if wanted != "auto":
        return _asked(spec, device, wanted)
    *ways, reference = known.values()
    if device.type != "cuda":
        return BackendChoice(shared(reference, spec, device), f"plain torch: the device is {device.type}")
    ways = [way for way in ways if not way.on_request]
    refused = {way: refusal for way in ways if (refusal := way.refusal(spec, device))}
    able = [way for way in ways if way not in refused]
    if not able:
        why = "plain torch, slow: " + "; ".join(f"{way.name}: {refusal}" for way, refusal in refused.items())
        logger.warning("%s: %s", spec, why)
        return BackendChoice(shared(reference, spec, device), why)
    good = [way for way in able if not way.drawback(spec)] or able[:1]
    if len(good) > 1:
        return _fastest(spec, device, good)
    reasons = {way: refused.get(way) or way.drawback(spec) for way in ways if way is not good[0]}
    why = "; ".join(f"not {way.name}: {reason}" for way, reason in reasons.items()) or f"the device is {device.type}"
    if any(ways.index(way) < ways.index(good[0]) for way in refused):
        logger.warning("%s runs on %s: %s", spec, good[0].name, why)
    return BackendChoice(shared(good[0], spec, device), why)


def _asked(spec: LinearSpec, device: torch.device, name: str) -> BackendChoice:
    known = backends_for(type(spec))
    if name not in known:
        raise ValueError(f"unknown backend {name!r}, known: auto, {', '.join(known)}")
    if refusal := known[name].refusal(spec, device):
        raise ValueError(f"backend {name} cannot run {spec} on {device}: {refusal}; backend auto takes what can")
    why = "asked for"
    if drawback := known[name].drawback(spec):
        why += f"; {drawback}"
        logger.warning("%s runs on %s: %s", spec, name, why)
    return BackendChoice(shared(known[name], spec, device), why)


def _fastest(spec: LinearSpec, device: torch.device, ways: list[type[Backend]]) -> BackendChoice:
    """The backend that is fastest overall; the reason says where it is slower than another."""
    best, *others = (shared(way, spec, device) for way in ways)
    reasons = []
    for other in others:
        found = compare(best, other)
        reason = f"{best.name} over {other.name}, measured: {found} tokens"
        first = found.overall >= 1
        chosen, left = (best, other) if first else (other, best)
        slower = [tokens for tokens in found.first if (found.speedup(tokens) < 1) == first]
        if slower:
            reason += f"; slower than {left.name} at {', '.join(map(str, slower))}"
            if Dispatch.runs is type(spec):
                reason += f" (backend {Dispatch.name} keeps both, for more memory)"
            logger.warning("%s runs on %s: %s", spec, chosen.name, reason)
        reasons.append(reason)
        best = chosen
    return BackendChoice(best, "; ".join(reasons))
