"""What is told of a job while it runs, and what each of its stages takes; by a clock that the tests turn."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from slideconvert.cli import progress
from slideconvert.cli.progress import ProgressLines, duration, progress_bar
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


def test_lines_of_a_log_come_by_stage_and_every_half_minute() -> None:
    clock, lines = Clock(), list[str]()
    tell = ProgressLines(lines.append, clock, quiet=0)
    tell("text", 0, 1)
    clock.now += 4.2
    tell("text", 1, 1)
    for done in range(9):
        tell("calibrate", done, 8)
        clock.now += 20
    assert lines == [
        "text …",
        "text done in 4.2 s",
        "calibrate …",
        "calibrate 25% after 40.0 s, about 2:00 left",
        "calibrate 50% after 1:20, about 1:20 left",
        "calibrate 75% after 2:00, about 40.0 s left",
        "calibrate done in 2:40",
    ]


def test_work_resumed_midway_and_work_without_end_are_told() -> None:
    """What an earlier run finished says nothing about the speed; a stage that comes again is told again."""
    clock, lines = Clock(), list[str]()
    tell = ProgressLines(lines.append, clock, quiet=0)
    tell("convert", 60, 100)
    clock.now += 30
    tell("convert", 60, 100)
    clock.now += 30
    tell("convert", 80, 100)
    tell("finish", 1, 1)
    tell("finish", 1, 1)
    assert lines == [
        "convert …",
        "convert 60% after 30.0 s",
        "convert 80% after 1:00, about 1:00 left",
        "finish done in 0.0 s",
        "finish done in 0.0 s",
    ]
    assert duration(7503) == "2:05:03"


def test_a_short_job_leaves_nothing_but_its_result_in_a_log() -> None:
    """A longer one then tells where it is, with its next report."""
    clock, lines = Clock(), list[str]()
    tell = ProgressLines(lines.append, clock, quiet=10)
    tell("text", 0, 1)
    tell("text", 1, 1)
    tell("calibrate", 0, 8)
    clock.now += 9.9
    tell("calibrate", 1, 8)
    assert not lines
    clock.now += 10.1
    tell("calibrate", 2, 8)
    assert lines == ["calibrate 25% after 20.0 s, about 1:00 left"]


def test_a_stage_that_reports_nothing_is_told_by_the_clock() -> None:
    """Also one that began in the quiet seconds; one that counts its work says how far it was, and is not told twice."""
    clock, lines = Clock(), list[str]()
    tell = ProgressLines(lines.append, clock, quiet=10)
    tell.still()
    tell("plan", 0, 1)
    tell.still()
    clock.now += 10
    tell.still()
    clock.now += 29
    tell.still()
    clock.now += 1
    tell.still()
    tell("plan", 1, 1)
    tell("calibrate", 0, 8)
    tell("calibrate", 2, 8)
    clock.now += 40
    tell.still()
    tell("calibrate", 3, 8)
    tell.still()
    tell("calibrate", 8, 8)
    clock.now += 60
    tell.still()
    assert lines == [
        "plan … 10.0 s so far",
        "plan … 40.0 s so far",
        "plan done in 40.0 s",
        "calibrate …",
        "calibrate 25% after 40.0 s, about 2:00 left",
        "calibrate done in 40.0 s",
    ]


def test_a_log_has_such_a_clock_and_it_ends_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    monkeypatch.setattr(progress, "LOOK", 0.01)
    monkeypatch.setattr(progress, "QUIET", 0.01)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.setattr(progress.click, "echo", lambda line, err: "so far" in line and said.set())
    before = threading.active_count()
    with progress_bar(True) as tell:
        tell("plan", 0, 1)
        assert said.wait(60)
    assert threading.active_count() == before
