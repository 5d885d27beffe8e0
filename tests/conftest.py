"""Fixtures that several test files use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers.utils

from slideconvert.cli import main, progress
from tests.helpers import demo, pico
from tests.helpers.calibrated import write_text
from tests.helpers.outliers import converted_smoothed, with_outliers


class Outcome(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]

MAGNITUDE = ("--method", "magnitude")
"""For tests of everything but accuracy: no text has to go through the model."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More threads do not speed up models this small, and slow them tenfold where other processes want the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def without_sklearn() -> None:
    """transformers imports it with the first model, for speculative decoding: seconds in every process."""
    transformers.utils.is_sklearn_available = lambda: False


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """No test cuts the power, and a killed process loses nothing that it wrote: waiting for the disk checks nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a slideconvert command in this process: cli("convert", source, out) -> Outcome."""

    # What tests look for depends neither on the machine's speed nor on the terminal of who runs them.
    monkeypatch.setattr(progress, "QUIET", math.inf)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["slideconvert", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A fresh pico model in one file."""
    return pico.write(tmp_path / "source")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration text for pico models; not to be changed."""
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="session")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, which is trained, cut to two layers; not to be changed."""
    return demo.short_demo(tmp_path_factory.mktemp("demo") / "short")


@pytest.fixture(scope="session")
def outliers(short_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model with large channels; not to be changed."""
    return with_outliers(short_demo, tmp_path_factory.mktemp("outliers") / "model")


@pytest.fixture(scope="session")
def smoothed(outliers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with large channels, pruned and quantized with smoothing; not to be changed."""
    return converted_smoothed(outliers, tmp_path_factory.mktemp("smoothed") / "out")


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets a number for each replay of a graph."""
    done: list[int] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        done.append(len(done))
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return done
