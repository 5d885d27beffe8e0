"""How long work tells how far it is, and what of it took how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): `done` of `total` units (weights, linears, windows, bytes) of a stage are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that nobody watches."""


@dataclass
class Stage:
    """What a stage took from its first word to its last. seconds; device_bytes: most of a GPU's memory that was in use,
    0 without one."""

    seconds: float = 0.0
    device_bytes: int = 0


class Stopwatch:
    """A Progress that passes on what it is told and keeps, by stage, what it took. Stages follow one another.

    device_peak: gives the most device memory in use since it was last asked, bytes.
    """

    def __init__(self, watcher: Progress = silent, device_peak: Callable[[], int] = lambda: 0) -> None:
        self.stages: dict[str, Stage] = {}
        self._watcher, self._device_peak = watcher, device_peak
        self._last = ""
        self._since = time.monotonic()

    def aside(self, stage: str, done: int, total: int) -> None:
        """Pass on what goes on beside the stages, from other threads: it has no time of its own."""
        self._watcher(stage, done, total)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now, peak = time.monotonic(), self._device_peak()
        if stage == self._last:
            found = self.stages[stage]
            found.seconds += now - self._since
            found.device_bytes = max(found.device_bytes, peak)
        else:
            self.stages.setdefault(stage, Stage())
        self._last, self._since = stage, now
        self._watcher(stage, done, total)
