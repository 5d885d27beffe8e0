"""Processes that convert at the same time: forks of this one, which are started, held and ended without waiting for a
clock."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slideconvert import cli
from tests.helpers.forks import fork
from tests.helpers.mortal import watch


def race(folder: Path, *commands: Sequence[object]) -> list[tuple[int, int, str]]:
    """Start the commands at the same moment, each in a process of its own: (pid, exit code, stderr) of each."""
    gate, opener = os.pipe()
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    pids = [_fork(words, log, gate, opener) for words, log in zip(commands, logs, strict=True)]
    os.close(gate)
    os.close(opener)  # both read its end now
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return [(pid, code, log.read_text()) for pid, code, log in zip(pids, codes, logs, strict=True)]


@contextmanager
def working(folder: Path, words: Sequence[object]) -> Iterator[int]:
    """The pid of a process that runs the command and has stopped before its first linear; killed in the end."""
    ready, told = os.pipe()
    gate, opener = os.pipe()

    def stop(name: str, _: tuple[Any, ...]) -> None:
        if name == "convert":
            os.write(told, b"x")
            os.read(gate, 1)

    pid = fork()
    if not pid:
        os.close(ready)
        os.close(opener)
        watch(pytest.MonkeyPatch(), stop)
        _run(words, folder / "working.log")
    os.close(told)
    os.close(gate)
    try:
        assert os.read(ready, 1) == b"x", (folder / "working.log").read_text()
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(opener)


def _fork(words: Sequence[object], log: Path, gate: int, opener: int) -> int:
    pid = fork()
    if not pid:
        os.close(opener)
        os.read(gate, 1)
        _run(words, log)
    return pid


def _run(words: Sequence[object], log: Path) -> None:
    """Run a command in this process, its stderr in a file, and end the process."""
    code: object = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        sys.argv = ["slideconvert", *map(str, words)]
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    os._exit(code if isinstance(code, int) else 1)
