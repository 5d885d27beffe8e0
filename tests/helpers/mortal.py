"""Conversions that kill themselves (kill -9) at a chosen call, and the calls that an uninterrupted one makes.

A child is forked for each death, so that it costs no imports.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from slideconvert import cli
from slideconvert.calibrate.store import LayerStore
from slideconvert.checkpoint.writer import WeightWriter
from slideconvert.convert import pipeline
from slideconvert.plan.presets import PRESETS
from slideconvert.prune import METHODS
from slideconvert.recover.run import Run
from slideconvert.rotate.descent import OrthogonalAdam
from slideconvert.rotate.problems import Problems
from tests.helpers.calibrated import brief_presets
from tests.helpers.forks import fork

STAGING = Path(".slideconvert-partial")
WORK = STAGING / "work"

WATCHED: dict[str, tuple[Any, str]] = {
    "keep": (LayerStore, "save"),  # before a layer is kept
    "convert": (pipeline, "convert_linear"),
    "write": (WeightWriter, "_put"),  # some bytes into a shard
    "journal": (WeightWriter, "_journal"),  # between a unit's bytes and its line in the journal
    "train": (Run, "step"),
    "collect": (Problems, "_write"),  # before the statistics of a layer are kept
    "descend": (OrthogonalAdam, "step"),  # a step of the residual's rotation, or of all heads'
    "rename": (Path, "replace"),  # small files of the staging folder, finished work, then publication
}
"""The calls that can be watched; with "solve", the call of any calibrated method."""


@dataclass(frozen=True)
class Death:
    """Kill the command `words` before its call number `after` of the watched function `where`."""

    where: str
    after: int
    words: Sequence[object]


def watch(patch: pytest.MonkeyPatch, report: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call report(name, arguments) before each watched call."""

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            report(name, args)
            return function(*args, **kwargs)

        return call

    for name, (owner, attribute) in WATCHED.items():
        patch.setattr(owner, attribute, watched(name, getattr(owner, attribute)))
    for word, method in METHODS.items():
        if method.solve:
            patch.setitem(METHODS, word, replace(method, solve=watched("solve", method.solve)))


def die(*deaths: Death) -> None:
    """Run these commands to their deaths, in order, each in a fork of this process; fail if one survives."""
    if any("--calibration" in death.words for death in deaths):  # or every child would import these
        for module in ("torch._dynamo", "transformers.models.qwen2.modeling_qwen2"):
            importlib.import_module(module)
    for death in deaths:
        child = fork()
        if not child:
            try:
                _run(death)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (death, status)


def _run(death: Death) -> None:
    calls = 0

    def report(name: str, _: tuple[Any, ...]) -> None:
        nonlocal calls
        if name == death.where:
            if calls == death.after:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

    logging.getLogger("concurrent.futures").addHandler(logging.StreamHandler())  # why a thread did not start
    watch(pytest.MonkeyPatch(), report)
    PRESETS.update(brief_presets())
    sys.argv = ["slideconvert", *map(str, death.words)]
    cli.main()
