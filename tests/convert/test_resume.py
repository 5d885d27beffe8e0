"""Killed at any point (kill -9) and resumed, a conversion writes the very bytes of an uninterrupted one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slideconvert.cli import main
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.mortal import STAGING, Death, die, watch

WORDS = (*MAGNITUDE, "--pattern", "2_8", "--shard-gb", "0.00005", "-q")
"""Several shards, some of them with more than one unit."""

Kill = tuple[str, int]
KILLS: list[Kill] = [
    *(("write", 0), ("write", 5), ("write", 40), ("write", 70)),
    *(("journal", 0), ("journal", 1), ("journal", 2), ("journal", 3)),
    *(("rename", calls) for calls in (0, 1, 2, 5, 9, 10, 12, 14, 16, 18)),
]
"""Where, before which call."""
TWICE: Kill = ("write", 30)
"""Resumed, and killed again between a unit's bytes and its line in the journal."""


def command(model: Path, out: Path) -> list[object]:
    return ["convert", model, out, *WORDS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["slideconvert", *map(str, command(model, out))])
        with pytest.raises(SystemExit, match="0"):
            main()
    return pico.files(out)


@pytest.fixture(scope="module")
def killed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Kill, Path]:
    """An output folder for each of KILLS and for TWICE, left by processes that died there."""
    folder = tmp_path_factory.mktemp("killed")
    outs = {kill: folder / "-".join(map(str, kill)) for kill in (*KILLS, TWICE)}
    deaths = [Death(kill[0], kill[1], command(model, out)) for kill, out in outs.items()]
    die(*deaths, Death("journal", 1, [*command(model, outs[TWICE]), "--resume"]))
    return outs


@pytest.fixture
def left(killed: dict[Kill, Path], tmp_path: Path) -> Callable[[Kill], Path]:
    """A copy of what a process left, to go on with."""
    return lambda kill: shutil.copytree(killed[kill], tmp_path / "left", copy_function=shutil.copy2)


@pytest.mark.parametrize("kill", [*KILLS, TWICE], ids=str)
def test_resumed_run_writes_the_same_bytes(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], left: Callable[[Kill], Path], kill: Kill
) -> None:
    out = left(kill)
    if (out / STAGING).exists():  # killed before the last rename: nobody takes it for finished
        assert cli("verify", out).code == 2
        outcome = cli(*command(model, out))
        assert outcome.code == 2 and "--resume" in outcome.err
    assert cli(*command(model, out), "--resume").code == 0
    assert pico.files(out) == uninterrupted


def test_finished_layers_are_not_computed_again(
    cli: Cli, model: Path, left: Callable[[Kill], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    watch(monkeypatch, lambda name, arguments: done.append(arguments[2].linear.name) if name == "convert" else None)
    assert cli(*command(model, left(("journal", 3))), "--resume").code == 0
    assert {name.split(".")[2] for name in done} == {str(pico.LAYERS - 1)}


def test_bytes_changed_on_disk_are_written_again(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], left: Callable[[Kill], Path]
) -> None:
    out = left(("journal", 3))
    shard = out / STAGING / "model-00001-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert cli(*command(model, out), "--resume").code == 0
    assert pico.files(out) == uninterrupted


@pytest.mark.parametrize("change", [("--pattern", "2_6"), ("--scheme", "fp8"), ("--layout", "dense")])
def test_changed_settings_are_refused(
    cli: Cli, model: Path, left: Callable[[Kill], Path], change: tuple[str, str]
) -> None:
    out = left(("journal", 2))
    before = pico.files(out)
    outcome = cli(*command(model, out), *change, "--resume")
    assert outcome.code == 2 and "other settings" in outcome.err and change[1].replace("_", ":") in outcome.err
    assert pico.files(out) == before


def test_changed_source_is_refused(cli: Cli, tmp_path: Path) -> None:
    source, out = pico.write(tmp_path / "source"), tmp_path / "out"
    die(Death("journal", 2, command(source, out)))
    tensors = pico.weights()
    tensors["model.norm.weight"] += 1
    pico.write(source, tensors)
    outcome = cli(*command(source, out), "--resume")
    assert outcome.code == 2 and "source_files" in outcome.err


def test_resume_starts_in_an_empty_folder_and_is_refused_in_a_folder_of_other_things(
    cli: Cli, model: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    assert cli(*command(model, tmp_path / "out"), "--resume").code == 0
    assert pico.files(tmp_path / "out") == uninterrupted
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    outcome = cli(*command(model, tmp_path / "notes"), "--resume")
    assert outcome.code == 2 and "not an empty folder" in outcome.err


def test_resuming_a_finished_conversion_does_nothing(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [word for word in command(model, out) if word != "-q"]
    assert cli(*words).code == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir() if path.is_file()}
    again = cli(*words, "--resume")
    assert again.code == 0 and f"already finished: {out}" in again.out and "convert" not in again.err
    assert json.loads(cli(*words, "--resume", "--json").out)["already_finished"] is True
    without = cli(*words)
    assert without.code == 2 and "a finished output is there (name a new folder, or replace the output" in without.err
    other = cli(*words, "--resume", "--scheme", "fp8")
    assert other.code == 2 and "other settings: recipe was" in other.err and "--overwrite" in other.err
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir() if path.is_file()}
    assert after == before


def test_overwriting_replaces_an_output_and_nothing_else(cli: Cli, model: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert cli(*command(model, out)).code == 0 and cli(*command(model, out)).code == 2
    fp8 = ("--scheme", "fp8")
    refused = cli(*command(model, out), "--overwrite", *fp8, "--pattern", "2_8", "--sparsity", 0.5)
    assert refused.code == 2 and (out / "report.json").is_file(), "a mistake in the options costs nothing"
    assert cli(*command(model, out), "--overwrite", *fp8).code == 0
    assert cli(*command(model, plain), *fp8).code == 0
    assert pico.files(out) == pico.files(plain)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    for folder in (notes, model):
        kept = pico.files(folder)
        assert cli(*command(model, folder), "--overwrite").code == 2
        assert pico.files(folder) == kept
    assert cli(*command(model, out), "--overwrite", "--resume").code == 2
