"""Which backend runs a linear, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Backend, LinearSpec
from .reference import Reference

BACKENDS: dict[str, type[Backend]] = {backend.name: backend for backend in (Reference,)}


@dataclass(frozen=True)
class Choice:
    """A backend for a linear. why: a sentence for people."""

    backend: Backend
    why: str


def choose(spec: LinearSpec, device: torch.device, wanted: str = "auto") -> Choice:
    """wanted: auto, or the name of a backend. ValueError if it is unknown or cannot run this linear there."""
    if wanted == "auto":
        return Choice(Reference(spec, device), "plain torch: no CUDA device")
    if wanted not in BACKENDS:
        raise ValueError(f"unknown backend {wanted!r}, known: auto, {', '.join(BACKENDS)}")
    refusal = BACKENDS[wanted].refusal(spec, device)
    if refusal:
        raise ValueError(f"backend {wanted} cannot run {spec} on {device}: {refusal}")
    return Choice(BACKENDS[wanted](spec, device), "asked for")
