"""Several ranks on this machine: forks of this process with the environment that torchrun gives, connected by gloo on
loopback."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slideconvert import cli, ranks
from tests.helpers.forks import fork

Change = Callable[[int, pytest.MonkeyPatch], None]
"""Called in each rank with its number before it begins."""


class Ended(NamedTuple):
    """How a rank ended: exit code (-9 if it was killed), stdout, stderr."""

    code: int
    out: str
    err: str


def launch(
    folder: Path, words: Sequence[object], count: int = 2, change: Change = lambda rank, patch: None
) -> list[Ended]:
    """Run a slideconvert command on so many ranks. folder: for what they print."""

    def command(rank: int) -> None:
        change(rank, pytest.MonkeyPatch())
        sys.argv = ["slideconvert", *map(str, words)]
        cli.main()

    return started(folder, count, command)


def on_ranks(folder: Path, count: int, job: Callable[[], Any]) -> list[Any]:
    """What `job` returns on each rank, as JSON holds it."""

    def joined(rank: int) -> None:
        with ranks.joined("cpu"):
            (folder / f"{rank}.json").write_text(json.dumps(job()))

    ended = started(folder, count, joined)
    assert [one.code for one in ended] == [0] * count, "\n".join(one.err for one in ended)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def started(folder: Path, count: int, run: Callable[[int], None]) -> list[Ended]:
    """Call `run` with its number on each of so many ranks. folder: for what they print."""
    folder.mkdir(exist_ok=True)
    port, pids = free_port(), []
    for rank in range(count):
        pid = fork()
        if not pid:
            os.environ.update(environment(rank, count, port))
            _run(folder, rank, run)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    logs = [[(folder / f"{rank}.{stream}").read_text() for stream in ("out", "err")] for rank in range(count)]
    return [Ended(code, out, err) for code, (out, err) in zip(codes, logs, strict=True)]


def _run(folder: Path, rank: int, run: Callable[[int], None]) -> None:
    """Run a rank in this process, and end the process."""
    code: object = 0
    try:
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        run(rank)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)
