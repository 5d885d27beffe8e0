"""Two processes and one output folder: one works, the other says so. Folders that vanish, paths that lead nowhere."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideconvert.checkpoint import claim as claim_module
from slideconvert.checkpoint.claim import WITHOUT_LOCKS, claimed
from slideconvert.checkpoint.writer import WeightWriter
from slideconvert.convert import pipeline
from slideconvert.errors import InputError, OutputError
from tests.conftest import MAGNITUDE, Cli, Outcome
from tests.helpers import pico
from tests.helpers.mortal import STAGING, Death, die
from tests.helpers.rivals import race, working

Words = Callable[..., list[object]]


@pytest.fixture
def words(source: Path) -> Words:
    return lambda out, *more: ["convert", source, out, *MAGNITUDE, "-q", *more]


def refused(outcome: Outcome, *said: str) -> None:
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2 and len(lines) == 1, outcome
    assert all(part in lines[0] for part in ("error: ", *said)), lines[0]


@pytest.mark.parametrize(
    "rounds", [pytest.param(range(4), id="4"), pytest.param(range(50), id="50", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("resumed", [False, True])
def test_of_two_processes_one_converts(cli: Cli, words: Words, tmp_path: Path, resumed: bool, rounds: range) -> None:
    assert cli(*words(tmp_path / "alone")).code == 0
    alone = pico.files(tmp_path / "alone")
    for number in rounds:
        out = tmp_path / f"out{number}"
        command = words(out, *(["--resume"] if resumed else []))
        if resumed:
            die(Death("journal", 1, words(out)))
        ended = sorted(race(tmp_path, command, command), key=lambda one: one[1])
        (winner, won, _), (_, lost, said) = ended
        assert (won, lost) == (0, 2), ended
        assert f"(pid {winner}) is writing to this folder" in said or "is not an empty folder" in said, ended
        assert len(said.splitlines()) == 1
        assert pico.files(out) == alone  # whole, and no .tmp beside
        assert cli("verify", out).code == 0


def test_a_folder_in_which_a_process_works_is_left_alone_until_the_process_dies(
    cli: Cli, words: Words, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert cli(*words(alone)).code == 0
    with working(tmp_path, words(out)) as pid:
        for command in (words(out), words(out, "--resume"), ["verify", out], ["inspect", out], ["plan", out]):
            refused(cli(*command), f"{out}: another process (pid {pid}) is writing to this folder")
    refused(cli(*words(out)), "is an unfinished conversion", "--resume")
    refused(cli("verify", out), "is an unfinished conversion", "--resume")
    assert cli(*words(out, "--resume")).code == 0 and pico.files(out) == pico.files(alone)


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "nobody/nothing", "OUT", "--low-disk"),
        ("convert", "nobody/nothing", "OUT"),
        ("sparsify", "nobody/nothing", "OUT", "--pattern", "2_8"),
        ("quantize", "nobody/nothing", "OUT"),
        ("slide", "nobody/nothing", "OUT"),
        ("relayout", "nobody/nothing", "OUT", "--layout", "dense"),
    ],
    ids=" ".join,
)
def test_every_command_claims_its_folder_before_it_fetches(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    with claimed(out):
        refused(cli(*(out if word == "OUT" else word for word in command)), "is writing to this folder")
    assert not out.exists()


def of_another_process(out: Path) -> list[str]:
    """Replace the folder by one in which another process works; its files."""
    shutil.rmtree(out)
    (out / STAGING).mkdir(parents=True)
    (out / STAGING / "of another process").write_text("")
    return list(pico.files(out))


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("stage", ["convert_linear", "finish"])
def test_a_folder_that_vanishes_ends_the_conversion(
    cli: Cli, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, replaced: bool
) -> None:
    out, real, once = tmp_path / "out", getattr(pipeline, stage), threading.Lock()

    def meanwhile(*args: Any) -> Any:
        made = real(*args)
        if once.acquire(blocking=False):  # linears are converted in several threads
            if replaced:
                of_another_process(out)
            else:
                shutil.rmtree(out)
        return made

    monkeypatch.setattr(pipeline, stage, meanwhile)
    refused(cli(*words(out)), f"{out} was {'replaced' if replaced else 'removed'} while")
    assert list(pico.files(out)) == ([f"{STAGING}/of another process"] if replaced else [])


def test_an_error_after_a_folder_was_replaced_deletes_nothing_in_it(
    cli: Cli, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, others = tmp_path / "out", []

    def fails(_: Any) -> None:
        others.extend(of_another_process(out))
        raise InputError("a fault of the source")

    monkeypatch.setattr(pipeline, "_check_source", fails)
    refused(cli(*words(out)), "a fault of the source")
    assert list(pico.files(out)) == others


def test_no_line_of_the_journal_gets_into_a_folder_that_replaces_the_first(
    cli: Cli, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, others = tmp_path / "out", WeightWriter._journal, []

    def meanwhile(*args: Any) -> None:
        if not others:
            others.extend(of_another_process(out))
        real(*args)

    monkeypatch.setattr(WeightWriter, "_journal", meanwhile)
    refused(cli(*words(out)), str(out))
    assert list(pico.files(out)) == others


def test_a_folder_that_vanishes_inside_a_step(
    cli: Cli, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", pipeline.finish

    def late(*args: Any) -> Any:
        shutil.rmtree(out)
        return real(*args)

    monkeypatch.setattr(pipeline, "finish", late)
    refused(cli(*words(out)), str(out), "does not exist any more")


def test_a_folder_made_for_nothing_is_removed_with_those_above_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    assert cli("convert", tmp_path / "missing", tmp_path / "above" / "new" / "out", "-q").code == 2
    assert list((tmp_path / "above").iterdir()) == []


def test_an_empty_folder_of_the_user_stays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert cli("convert", tmp_path / "missing", tmp_path / "out", "-q").code == 2
    assert (tmp_path / "out").is_dir()


def test_a_file_system_without_locks_is_noted(
    cli: Cli, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", without)
    assert cli(*words(tmp_path / "out")).code == 0
    assert WITHOUT_LOCKS in json.loads((tmp_path / "out" / "report.json").read_text())["notes"]


def test_a_reader_that_probes_does_not_keep_a_writer_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, reader = fcntl.flock, os.open(tmp_path, os.O_RDONLY)
    real(reader, fcntl.LOCK_SH)

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        if how == fcntl.LOCK_UN:
            real(reader, fcntl.LOCK_UN)  # the probe ends while the writer tries

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path) as claim:
        assert claim.locked
    os.close(reader)


def test_a_folder_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, calls = tmp_path / "out", claim_module.lock, []

    def lock(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) == 1:
            out.rmdir()
        return real(descriptor)

    monkeypatch.setattr(claim_module, "lock", lock)
    with claimed(out) as claim:
        assert claim.holds and len(calls) == 2
        with pytest.raises(InputError, match="is writing to this folder"), claimed(out):
            pass


def test_an_output_named_like_the_source_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(cli("convert", "nobody/nothing", "nobody/nothing"), "is the name of the source, too")
    assert list(tmp_path.iterdir()) == []


LONG = "x" * 300


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("dangling", "dangling is a link to nowhere, which does not exist"),
        ("dangling/out", "dangling is a link to nowhere, which does not exist"),
        ("loop", "loop is a link to loop, which does not exist"),
        (LONG, "too long"),
        (f"{LONG}/out", "too long"),
    ],
    ids=["dangling", "below dangling", "loop", "long", "below long"],
)
def test_outputs_that_lead_nowhere(cli: Cli, words: Words, tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    refused(cli(*words(tmp_path / path)), said)


def test_a_name_too_long_is_an_error_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a name in this path is too long"), claimed(tmp_path / LONG):
        pass


@pytest.mark.parametrize("command", ["plan", "verify", "inspect", "generate", "convert"])
def test_sources_with_names_too_long(cli: Cli, tmp_path: Path, command: str) -> None:
    more = {"generate": ["--prompt", "a"], "convert": [tmp_path / "out"]}.get(command, [])
    refused(cli(command, tmp_path / LONG, *more), "too long")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_links_of_the_source_that_lead_nowhere(cli: Cli, words: Words, source: Path, tmp_path: Path, name: str) -> None:
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("../blobs/gone")
    refused(cli(*words(tmp_path / "out")), f"{source / name} is a link to ../blobs/gone, which does not exist")
    assert not (tmp_path / "out").exists()
