"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): `done` of `total` units (weights, linears, windows, bytes) of a stage are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that nobody watches."""
