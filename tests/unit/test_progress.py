"""What is told of a job while it runs, and what each of its stages takes; by a clock that the tests turn."""

from __future__ import annotations

from itertools import pairwise

from slideconvert.progress import Stage, Stopwatch


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_belongs_to_a_stage() -> None:
    """Before the first report, between stages, and when one stage interrupts another."""
    clock, heard, peaks = Clock(), list[tuple[str, int, int]](), iter(range(10, 100, 10))
    watch = Stopwatch(lambda *report: heard.append(report), lambda: next(peaks), clock=clock, started=97.0)
    reports = [
        (0, "import", 1, 1),  # 3 s since the start
        (2, "text", 0, 1),  # it prepared itself for 2 s
        (5, "text", 1, 1),
        (1, "calibrate", 0, 2),
        (7, "calibrate", 1, 2),
        (4, "verify", 0, 1),  # calibrate was not finished: these 4 s are its own
        (8, "verify", 1, 1),
        (6, "finish", 1, 1),
    ]
    for seconds, stage, done, total in reports:
        clock.now += seconds
        watch(stage, done, total)
    assert {name: stage.seconds for name, stage in watch.stages.items()} == {
        "import": 3, "text": 7, "calibrate": 12, "verify": 8, "finish": 6,
    }  # fmt: skip
    assert watch.seconds == clock.now - 97.0
    assert heard == [(stage, done, total) for _, stage, done, total in reports]
    most = [stage.device_bytes for stage in watch.stages.values()]
    assert most == [10, 30, 60, 70, 80] and all(before < after for before, after in pairwise(most))


def test_work_aside_is_told_and_takes_no_time_of_a_stage() -> None:
    clock, heard = Clock(), list[tuple[str, int, int]]()
    watch = Stopwatch(lambda *report: heard.append(report), clock=clock)
    watch("calibrate", 0, 1)
    clock.now += 4
    watch.aside("download", 3, 9)
    clock.now += 4
    watch("calibrate", 1, 1)
    assert watch.stages == {"calibrate": Stage(8.0, 0)} and heard[1] == ("download", 3, 9)
