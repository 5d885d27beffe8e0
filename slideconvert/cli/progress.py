"""Progress on stderr: bars on a terminal, lines in a log (nohup, Slurm, CI)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import Progress

QUIET = 10.0
"""Seconds before the first line: of a short job, a log has the result or the error alone."""
LOOK = 10.0
"""Seconds between two looks of a clock at a job that reports nothing."""
EVERY = 30.0
"""Seconds between two lines of one stage."""


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """A progress callback that shows each stage with the time left; does nothing if not shown."""
    from ..progress import silent

    if not shown:
        yield silent
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bars(console) as tell:
            yield tell
    else:
        with _lines() as tell:
            yield tell


@contextmanager
def _lines() -> Iterator[Progress]:
    """Lines by the reports of the job, and by a clock where there are none: a stage may not count its work."""
    lines, over = ProgressLines(lambda line: click.echo(line, err=True)), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            lines.still()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join()


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.table import Column

    from .columns import path_name

    # A long name is cut, not the figures behind it.
    name = Column(no_wrap=True, min_width=10, max_width=console.width // 2)
    columns = [
        rich_progress.TextColumn("{task.description}", table_column=name),
        rich_progress.BarColumn(40),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
    ]
    tasks: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=console, refresh_per_second=4) as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(path_name(stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


class ProgressLines:
    """A Progress in lines: one when a stage begins, one when it is complete, and one every EVERY seconds between, with
    the time left at the stage's mean speed; none in the first `quiet` seconds. Any thread may call it.

    show: prints a line. clock: returns seconds.
    """

    def __init__(
        self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic, quiet: float | None = None
    ) -> None:
        self._show, self._clock = show, clock
        self._began: dict[str, tuple[float, int]] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._speaks = clock() + (QUIET if quiet is None else quiet)
        self._shown = -math.inf
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            now = self._clock()
            self._last[stage] = done, total
            if stage not in self._began:
                self._began[stage] = now, done
                if done < total:
                    self._say(now, f"{stage} …")
                    return
            if done >= total:
                began, _ = self._began.pop(stage)
                self._say(now, f"{stage} done in {duration(now - began)}")
            elif now - self._shown >= EVERY:
                self._say(now, self._so_far(stage, now))

    def still(self) -> None:
        """Say how far the stage is that began last, if nothing was said for EVERY seconds, or since the quiet ones."""
        with self._lock:
            now = self._clock()
            if self._began and now - self._shown >= EVERY:
                self._say(now, self._so_far(list(self._began)[-1], now))

    def _so_far(self, stage: str, now: float) -> str:
        (began, first), (done, total) = self._began[stage], self._last[stage]
        if total <= 1:  # it does not count its work
            return f"{stage} … {duration(now - began)} so far"
        left = (now - began) * (total - done) / (done - first) if done > first else None
        ahead = "" if left is None else f", about {duration(left)} left"
        return f"{stage} {done / total:.0%} after {duration(now - began)}{ahead}"

    def _say(self, now: float, line: str) -> None:
        if now >= self._speaks:
            self._show(line)
            self._shown = now


def duration(seconds: float) -> str:
    """4.21 -> '4.2 s', 185 -> '3:05', 7503 -> '2:05:03'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
