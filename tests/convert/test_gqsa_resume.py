"""GQSA that is killed (kill -9) while it solves or trains, and resumed, writes the very same bytes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slideconvert.cli import main
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_model, write_text
from tests.helpers.mortal import WORK, Death, die, watch

LINEARS, EPOCH, BLOCK_EPOCHS, END_EPOCHS = 7, 2, 2, 3
"""Linears of a layer; steps of an epoch; epochs of block recovery, and at most of training end to end.

How often training is begun again depends on how the CPU rounds: steps are counted in an uninterrupted run."""


class Kill(NamedTuple):
    """Before call number `call` of `where` (negative: from the last) on the way to the occurrence-th file `towards`."""

    towards: str
    occurrence: int
    where: str
    call: int


KILLS = {
    "block recovery of the first layer": Kill("layer-00000", 0, "train", -1),
    "solving the second layer": Kill("layer-00001", 0, "solve", 1),
    "block recovery of the second layer": Kill("layer-00001", 0, "train", 1),
    "the first epoch end to end": Kill("training", 0, "train", 1),
    "the second epoch end to end": Kill("training", 1, "train", 1),
    "the last state end to end, written and not yet renamed": Kill("training", -1, "rename", 0),
    "keeping the second trained layer": Kill("trained-00001", 0, "keep", 0),
}
ONCE, AGAIN = "the first epoch end to end", Kill("training", -1, "train", -1)
"""Killed, resumed, and killed again in the last epoch."""
TWICE = f"{ONCE}, and again in the last one"


@dataclass(frozen=True)
class Segment:
    """The watched calls of an uninterrupted run that end with the renaming of one file of its work."""

    name: str  # of the file, without suffix
    calls: tuple[str, ...]

    @property
    def steps(self) -> int:
        return self.calls.count("train")


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: the files it writes, and what it does between the files of its work."""

    files: dict[str, bytes]
    segments: tuple[Segment, ...]

    def find(self, kill: Kill) -> int:
        """The number of the segment in which to die."""
        there = [number for number, one in enumerate(self.segments) if one.name.startswith(kill.towards)]
        return there[kill.occurrence]

    def call(self, kill: Kill, begin: int = 0) -> int:
        """Which call of kill.where that is, in a run that begins with segment number `begin`."""
        number = self.find(kill)
        before = sum(one.calls.count(kill.where) for one in self.segments[begin:number])
        return before + range(self.segments[number].calls.count(kill.where))[kill.call]

    def kept(self, kill: Kill) -> set[str]:
        """The files of work that a run leaves which dies there."""
        names = {f"{one.name}.safetensors" for one in self.segments[: self.find(kill)]}
        half = f"{self.segments[self.find(kill)].name}.safetensors.tmp"
        return names | ({half} if kill.where == "rename" else set())

    def steps(self, kill: Kill) -> int:
        """Steps of training that are left to the run that resumes."""
        return sum(one.steps for one in self.segments[self.find(kill) :])


class Job:
    """A pico model with biases, a text, and the words to convert it with."""

    def __init__(self, folder: Path) -> None:
        self.source, self.text = (
            write_model(folder / "source", "qwen2", num_hidden_layers=2),
            write_text(folder / "text.jsonl"),
        )

    def words(self, out: Path, *more: object) -> list[str]:
        method = ("--method", "gqsa", "--group-size", 8, "--block-epochs", BLOCK_EPOCHS, "--end-epochs", END_EPOCHS)
        words = ("--calibration", self.text, *FLAGS, "--batch-tokens", 72, "--shard-gb", "0.00003", "--device", "cpu")
        return [str(word) for word in ("convert", self.source, out, *method, *words, "-q", *more)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An uninterrupted conversion."""
    out, calls, segments = tmp_path_factory.mktemp("whole") / "out", list[str](), list[Segment]()

    def report(name: str, arguments: tuple[Any, ...]) -> None:
        calls.append(name)
        if name == "rename" and arguments[1].parent.name == WORK.name and arguments[1].suffix == ".safetensors":
            segments.append(Segment(arguments[1].stem, tuple(calls)))
            calls.clear()

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, report)
        patch.setattr("sys.argv", ["slideconvert", *job.words(out)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return Whole(pico.files(out), tuple(segments))


@pytest.fixture(scope="module")
def killed(job: Job, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An output folder for each of KILLS and for TWICE, left by processes that died there."""
    folder = tmp_path_factory.mktemp("killed")
    outs = {name: folder / name for name in (*KILLS, TWICE)}
    kills = {**KILLS, TWICE: KILLS[ONCE]}
    die(
        *(Death(kill.where, whole.call(kill), job.words(outs[name])) for name, kill in kills.items()),
        Death(AGAIN.where, whole.call(AGAIN, whole.find(KILLS[ONCE])), job.words(outs[TWICE], "--resume")),
    )
    return outs


def test_each_layer_and_each_epoch_end_to_end_is_kept(whole: Whole) -> None:
    """Or the numbers below, which are those of this run, would say little."""
    names = [one.name for one in whole.segments]
    epochs = [one for one in whole.segments if one.name.startswith("training-")]
    assert [name for name in names if not name.startswith("training-")] == [
        *("layer-00000", "layer-00001"),
        *("trained-00000", "trained-00001"),
    ]
    assert names[2:-2] == [one.name for one in epochs] and len(epochs) >= 2
    assert all(one.steps == EPOCH for one in epochs)
    for layer in whole.segments[:2]:
        assert layer.steps and layer.steps % (EPOCH * BLOCK_EPOCHS) == 0 and layer.calls.count("solve") == LINEARS
    assert not any(one.steps for one in whole.segments[-2:])


@pytest.mark.parametrize("name", [*KILLS, TWICE])
def test_resumed_run_writes_the_same_bytes_and_does_nothing_twice(
    cli: Cli,
    job: Job,
    killed: dict[str, Path],
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    out, kill = shutil.copytree(killed[name], tmp_path / "left", copy_function=shutil.copy2), KILLS.get(name, AGAIN)
    assert {path.name for path in (out / WORK).glob("*safetensors*")} == whole.kept(kill)
    assert cli("verify", out).code == 2, "nobody takes it for finished"
    calls: list[str] = []
    watch(monkeypatch, lambda name, _: calls.append(name))
    assert cli(*job.words(out, "--resume")).code == 0
    assert calls.count("train") == whole.steps(kill)
    assert pico.files(out) == whole.files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparsity", 0.4), "recipe"),
        (("--row-cap", 2), "recipe"),
        (("--group-size", 4), "recipe"),
        (("--symmetric",), "recipe"),
        (("--end-epochs", 4), "recipe"),
        (("--preset", "quality"), "recipe"),
        (("--batch-tokens", 48), "batch_tokens was 72, is 48"),
    ],
    ids=str,
)
def test_changed_words_are_refused(
    cli: Cli, job: Job, killed: dict[str, Path], words: tuple[object, ...], message: str
) -> None:
    out = killed["the second epoch end to end"]
    before = pico.files(out)
    outcome = cli(*job.words(out, *words, "--resume"))
    assert outcome.code == 2 and "other settings" in outcome.err and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and pico.files(out) == before
