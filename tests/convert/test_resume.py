"""Killed at any point (kill -9) and resumed, a conversion writes the very bytes of an uninterrupted one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico

STAGING = ".slideconvert-partial"
WORDS = (*MAGNITUDE, "--pattern", "2_8", "--shard-gb", "0.00005")
"""Several shards, some of them with more than one unit."""

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from slideconvert.checkpoint import writer
from slideconvert.cli import main

where, after = sys.argv[1], int(sys.argv[2])
calls = 0

def dying(function):
    def wrapped(*args, **kwargs):
        global calls
        if calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*args, **kwargs)
    return wrapped

if where == "write":      # some bytes into a shard
    writer.WeightWriter._put = dying(writer.WeightWriter._put)
elif where == "journal":  # between a unit's bytes and its line in the journal
    writer.WeightWriter._journal = dying(writer.WeightWriter._journal)
else:                     # between two renames: small files of the staging folder, then publication
    Path.replace = dying(Path.replace)
sys.argv = ["slideconvert", "convert", *sys.argv[3:]]
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run([sys.executable, "-m", "slideconvert", "convert", model, out, *WORDS, "-q"], check=True)
    return pico.files(out)


def kill(where: str, after: int, model: Path, out: Path) -> None:
    """Run a conversion that kills itself before the call number `after`; fail if it survived."""
    command = [sys.executable, "-c", KILLED_RUN, where, str(after), str(model), str(out), *WORDS, "-q"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("where", "after"),
    [("write", 0), ("write", 5), ("write", 40), ("write", 70), ("journal", 0), ("journal", 1), ("journal", 3)]
    + [("replace", calls) for calls in (0, 1, 2, 5, 9, 10, 12, 14, 16, 18)],
)
def test_resumed_run_writes_the_same_bytes(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], tmp_path: Path, where: str, after: int
) -> None:
    out = tmp_path / "out"
    kill(where, after, model, out)
    if (out / STAGING).exists():  # killed before the last rename: nobody takes it for finished
        assert cli("verify", out).code == 2
        outcome = cli("convert", model, out, *WORDS)
        assert outcome.code == 2 and "--resume" in outcome.err
    assert cli("convert", model, out, *WORDS, "--resume").code == 0
    assert pico.files(out) == uninterrupted


def test_killed_twice(cli: Cli, model: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill("journal", 1, model, out)
    command = [sys.executable, "-c", KILLED_RUN, "journal", "1", model, out, *WORDS, "--resume"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert cli("convert", model, out, *WORDS, "--resume").code == 0
    assert pico.files(out) == uninterrupted


def test_finished_layers_are_not_computed_again(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slideconvert.convert import pipeline

    kill("journal", 3, model, tmp_path / "out")
    done: list[str] = []
    real = pipeline.convert_linear
    monkeypatch.setattr(
        pipeline, "convert_linear", lambda plan, *rest: done.append(plan.linear.name) or real(plan, *rest)
    )
    assert cli("convert", model, tmp_path / "out", *WORDS, "--resume").code == 0
    assert {name.split(".")[2] for name in done} == {str(pico.LAYERS - 1)}


def test_bytes_changed_on_disk_are_written_again(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill("journal", 3, model, out)
    shard = out / STAGING / "model-00001-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert cli("convert", model, out, *WORDS, "--resume").code == 0
    assert pico.files(out) == uninterrupted


@pytest.mark.parametrize("change", [("--pattern", "2_6"), ("--scheme", "fp8"), ("--layout", "dense")])
def test_changed_settings_are_refused(cli: Cli, model: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    out = tmp_path / "out"
    kill("journal", 2, model, out)
    before = pico.files(out)
    outcome = cli("convert", model, out, *WORDS, *change, "--resume")
    assert outcome.code == 2 and "other settings" in outcome.err and change[1].replace("_", ":") in outcome.err
    assert pico.files(out) == before


def test_changed_source_is_refused(cli: Cli, model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(model, tmp_path / "source")
    kill("journal", 2, source, tmp_path / "out")
    tensors = pico.weights()
    tensors["model.norm.weight"] += 1
    pico.write(source, tensors)
    outcome = cli("convert", source, tmp_path / "out", *WORDS, "--resume")
    assert outcome.code == 2 and "source_files" in outcome.err


def test_resume_of_nothing_starts_afresh_and_of_a_finished_folder_is_refused(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    assert cli("convert", model, tmp_path / "out", *WORDS, "--resume").code == 0
    assert pico.files(tmp_path / "out") == uninterrupted
    outcome = cli("convert", model, tmp_path / "out", *WORDS, "--resume")
    assert outcome.code == 2 and "not an empty folder" in outcome.err
