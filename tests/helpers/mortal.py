"""Conversions that kill themselves (kill -9) at a chosen call, and the calls that an uninterrupted one makes.

One process loads everything once and forks a child for each death: a child that dies costs no imports.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert import cli
from slideconvert.calibrate.store import LayerStore
from slideconvert.checkpoint.writer import WeightWriter
from slideconvert.convert import pipeline
from slideconvert.plan.presets import PRESETS
from slideconvert.prune import METHODS
from slideconvert.recover import training
from tests.helpers.calibrated import quality

STAGING = Path(".slideconvert-partial")
WORK = STAGING / "work"
ROOT = Path(__file__).parents[2]

WATCHED: dict[str, tuple[Any, str]] = {
    "keep": (LayerStore, "save"),  # before a layer is kept
    "convert": (pipeline, "convert_linear"),
    "write": (WeightWriter, "_put"),  # some bytes into a shard
    "journal": (WeightWriter, "_journal"),  # between a unit's bytes and its line in the journal
    "train": (training, "_step"),
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
    """Run these commands to their deaths, in order; fail if one survives."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = json.dumps([(death.where, death.after, [str(word) for word in death.words]) for death in deaths])
    command = [sys.executable, "-m", "tests.helpers.mortal", told]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.stdout.split() == [str(-signal.SIGKILL)] * len(deaths), ran.stderr


def _run(where: str, after: int, words: list[str]) -> None:
    calls = 0

    def report(name: str, _: tuple[Any, ...]) -> None:
        nonlocal calls
        if name == where:
            if calls == after:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1

    watch(pytest.MonkeyPatch(), report)
    sys.argv = ["slideconvert", *words]
    cli.main()


def _main() -> None:
    deaths = json.loads(sys.argv[1])
    sys.modules["sklearn"] = None  # transformers would import it, for seconds
    if any("--calibration" in words for _, _, words in deaths):  # or every child would import these
        for module in ("torch._dynamo", "transformers.models.qwen2.modeling_qwen2"):
            importlib.import_module(module)
    torch.set_num_threads(1)
    PRESETS["quality"] = quality(2, 2)
    for where, after, words in deaths:
        child = os.fork()
        if not child:
            _run(where, after, words)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        died = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        sys.stdout.write(f"{died}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
