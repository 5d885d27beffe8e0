"""How long jobs report their progress, and how much time and device memory each of their stages takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): `done` of `total` units (weights, linears, sequences, bytes) are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that does nothing."""


@dataclass
class Stage:
    """The cost of a stage between its first and last report.

    seconds: wall-clock time. device_bytes: the peak of GPU memory in use, 0 without a GPU.
    """

    seconds: float = 0.0
    device_bytes: int = 0


class Stopwatch:
    """A Progress that forwards reports to another one and measures each stage. Stages follow one another.

    device_peak: returns the peak of device memory in use since its last call, in bytes.
    """

    def __init__(self, watcher: Progress = silent, device_peak: Callable[[], int] = lambda: 0) -> None:
        self.stages: dict[str, Stage] = {}
        self._watcher, self._device_peak = watcher, device_peak
        self._last = ""
        self._since = time.monotonic()

    def aside(self, stage: str, done: int, total: int) -> None:
        """Forward a report of work in another thread, which overlaps with the stages and is not timed."""
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
