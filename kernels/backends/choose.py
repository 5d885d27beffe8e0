"""Which backend runs a linear, and why. Chosen once per linear, on the device that its weights are on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch

from .base import Backend, LinearSpec
from .benchmark import compare
from .cuda import CudaBackend, indexed, shared
from .cusparselt import Cusparselt
from .dense import Dense
from .dispatch import Dispatch
from .reference import Reference

BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in (Cusparselt, Dense, Dispatch, Reference)}

logger = logging.getLogger("slidesparse")


@dataclass(frozen=True)
class Choice:
    """A backend for a linear. why: a sentence for people."""

    backend: Backend
    why: str


@cache
def choose(spec: LinearSpec, device: torch.device, wanted: str = "auto") -> Choice:
    """wanted: auto, or the name of a backend. ValueError if it is unknown or cannot run this linear there."""
    device = indexed(device) if device.type == "cuda" else device
    if wanted != "auto":
        if wanted not in BACKENDS:
            raise ValueError(f"unknown backend {wanted!r}, known: auto, {', '.join(BACKENDS)}")
        refusal = BACKENDS[wanted].refusal(spec, device)
        if refusal:
            raise ValueError(f"backend {wanted} cannot run {spec} on {device}: {refusal}; backend auto takes what can")
        why = "asked for"
        if wanted == Dispatch.name:
            why += f"; keeps the dense codes as well, {spec.rows * spec.columns / 1e6:.1f} MB more"
            logger.warning("%s runs on both: %s", spec, why)
        return _choice(BACKENDS[wanted], spec, device, why)
    if device.type != "cuda":
        return _choice(Reference, spec, device, f"plain torch: the device is {device.type}")
    no_sparse, no_dense = (kind.refusal(spec, device) for kind in (Cusparselt, Dense))
    if no_sparse and no_dense:
        why = f"plain torch, slow: cusparselt: {no_sparse}; dense: {no_dense}"
        logger.warning("%s: %s", spec, why)
        return _choice(Reference, spec, device, why)
    if no_sparse:
        logger.warning("%s runs dense: %s", spec, no_sparse)
        return _choice(Dense, spec, device, f"no sparse way: {no_sparse}")
    if no_dense:
        return _choice(Cusparselt, spec, device, f"no dense way: {no_dense}")
    if spec.length is None:
        return _choice(Dense, spec, device, "2:inf doubles the columns: nothing to gain")
    return _measured(spec, device)


def _measured(spec: LinearSpec, device: torch.device) -> Choice:
    """The faster of sparse and dense over all; what it loses somewhere is said."""
    found = compare(shared(Cusparselt, spec, device), shared(Dense, spec, device))
    sparse = found.overall >= 1
    why = f"sparse over dense, measured: {found} tokens"
    slower = [tokens for tokens in found.sparse if (found.speedup(tokens) < 1) == sparse]
    if slower:
        other = "dense" if sparse else "cusparselt"
        why += f"; slower than {other} at {', '.join(map(str, slower))} (backend both keeps both, for more memory)"
        logger.warning("%s runs on %s: %s", spec, "cusparselt" if sparse else "dense", why)
    return _choice(Cusparselt if sparse else Dense, spec, device, why)


def _choice(kind: type[Backend], spec: LinearSpec, device: torch.device, why: str) -> Choice:
    one = shared(kind, spec, device) if issubclass(kind, CudaBackend) else kind(spec, device)
    return Choice(one, why)
