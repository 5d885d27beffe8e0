"""The process that serves a checkpoint: starts vLLM, and takes a sample whenever it is its turn."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

POLL = 0.2
"""Seconds between two looks at a process that is starting."""
END = 20
"""Lines of the log of one that failed that are shown."""


class Engine:
    """runtime/vllm_speed.py in a process of its own, which ends with this object's context.

    task: what is measured. environment: added to that of this process. log: what it prints; its files lie beside.
    limit: seconds for the start, and again for all turns.
    """

    def __init__(
        self, script: Path, task: dict[str, Any], environment: dict[str, str], log: Path, limit: float
    ) -> None:
        asked, self.log, self.limit = log.with_suffix(".task.json"), log, limit
        self.out, self._ready = log.with_suffix(".out.json"), log.with_suffix(".ready")
        asked.write_text(json.dumps(task))
        for path in (self.out, self._ready):
            path.unlink(missing_ok=True)
        with log.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, script, asked, self.out, self._ready], stdin=subprocess.PIPE, stdout=said,
                stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment},
            )  # fmt: skip
        self._begun, self._measuring = time.monotonic(), 0.0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # with the processes that it has started
            self.process.wait()

    def wait_until_ready(self) -> None:
        """RuntimeError if it fails or takes longer than `limit` seconds."""
        while not self._ready.exists():
            if self.process.poll() is not None:
                raise RuntimeError(self._failed())
            if time.monotonic() > self._begun + self.limit:
                raise RuntimeError(f"not ready in {self.limit:.0f} s, see {self.log}")
            time.sleep(POLL)

    def take_turn(self) -> None:
        """Let the engine take one more sample of everything. RuntimeError if it fails, or all turns take longer than
        `limit` seconds."""
        assert self.process.stdin
        self.out.unlink(missing_ok=True)
        begun = time.monotonic()
        with suppress(BrokenPipeError):  # of one that has failed
            self.process.stdin.write(b"measure\n")
            self.process.stdin.flush()
        while not self.out.exists():
            if self.process.poll() is not None:
                raise RuntimeError(self._failed())
            if self._measuring + time.monotonic() - begun > self.limit:
                raise RuntimeError(f"not measured in {self.limit:.0f} s, see {self.log}")
            time.sleep(POLL)
        self._measuring += time.monotonic() - begun

    def told(self) -> dict[str, Any]:
        """What the engine measured in all turns, and what its log says."""
        return {**json.loads(self.out.read_text()), **facts(self.log.read_text(errors="replace"))}

    def _failed(self) -> str:
        """The status, and the end of the log: the folder may be gone with the machine."""
        end = self.log.read_text(errors="replace").splitlines()[-END:]
        return "\n".join([f"failed with status {self.process.returncode}, the end of {self.log}:", *end])


def facts(said: str) -> dict[str, Any]:
    """What vLLM and our plugin report in the log: GiB of the loaded model, and what runs."""
    loaded = re.search(r"Model loading took ([\d.]+) GiB", said)
    ours = [line.partition("SlideSparse")[2].lstrip(": ") for line in said.splitlines() if "SlideSparse" in line]
    return {"gib": float(loaded[1]) if loaded else None, "runs": list(dict.fromkeys(ours))}
