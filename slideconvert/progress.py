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
    """The cost of a stage. seconds: wall-clock time. device_bytes: the peak of GPU memory in use, 0 without a GPU."""

    seconds: float = 0.0
    device_bytes: int = 0


class Stopwatch:
    """A Progress that forwards reports to another one and measures each stage. Every second belongs to a stage: their
    times sum to `seconds`.

    Stages follow one another. The time before a report belongs to the stage that was reported last, as long as that is
    unfinished (done < total), and else to the stage that reports now, which prepared itself.

    clock: returns seconds. started: its value when the job began. device_peak: returns the peak of device memory in use
    since its last call, in bytes.
    """

    def __init__(
        self,
        watcher: Progress = silent,
        device_peak: Callable[[], int] = lambda: 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self.stages: dict[str, Stage] = {}
        self.device_peak = device_peak
        self._watcher, self._clock = watcher, clock
        self._last, self._unfinished = "", False
        self._since = clock() if started is None else started

    @property
    def seconds(self) -> float:
        """The time of all stages together, from the start to the last report."""
        return sum(stage.seconds for stage in self.stages.values())

    def aside(self, stage: str, done: int, total: int) -> None:
        """Forward a report of work in another thread, which overlaps with the stages and is not timed."""
        self._watcher(stage, done, total)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        found = self.stages.setdefault(self._last if self._unfinished else stage, Stage())
        found.seconds += now - self._since
        found.device_bytes = max(found.device_bytes, self.device_peak())
        self.stages.setdefault(stage, Stage())
        self._last, self._unfinished, self._since = stage, done < total, now
        self._watcher(stage, done, total)
