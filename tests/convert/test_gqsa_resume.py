"""GQSA that is killed (kill -9) while it solves or trains, and resumed, writes the very same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from slideconvert.cli import main
from slideconvert.recover import training
from tests.conftest import Cli
from tests.convert.test_calibrate_resume import WORK, die
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_model, write_text

Kill = tuple[str, int]
STEPS, FIRST, LAYERS = 20, 8, {"layer-00000", "layer-00001"}
"""Of training: two attempts of two epochs, of two steps each, for the first layer, one for the second, two end to
end."""
KILLS: dict[Kill, tuple[int, set[str]]] = {
    ("train", 6): (STEPS, set()),  # in block recovery of the first layer, its second attempt
    ("solve", 9): (STEPS - FIRST, {"layer-00000"}),  # in the second layer, nothing of which is kept
    ("train", 10): (STEPS - FIRST, {"layer-00000"}),
    ("train", 15): (6, LAYERS | {"training-0"}),  # end to end, in the second epoch
    ("rename", 7): (2, LAYERS | {"training-0", "training-1", "training-1.safetensors.tmp"}),  # its last state written
    ("keep", 3): (0, LAYERS | {"training-0", "training-1", "trained-00000"}),
}
"""Where, before which call; steps that are left, and what there is of the work."""
TWICE: Kill = ("train", 13)
"""Killed in the first epoch end to end, resumed, and killed again in the second attempt."""


class Job:
    """A pico model with biases, a text, and the words to convert it with."""

    def __init__(self, folder: Path) -> None:
        self.source, self.text = (
            write_model(folder / "source", "qwen2", num_hidden_layers=2),
            write_text(folder / "text.jsonl"),
        )

    def words(self, out: Path, *more: object) -> list[str]:
        method = ("--method", "gqsa", "--group-size", 8, "--block-epochs", 2, "--end-epochs", 3)
        words = ("--calibration", self.text, *FLAGS, "--batch-tokens", 72, "--shard-gb", "0.00003", "--device", "cpu")
        return [str(word) for word in ("convert", self.source, out, *method, *words, "-q", *more)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def killed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[Kill, Path]:
    """An output folder for each of KILLS and for TWICE, left by processes that died there."""
    folder = tmp_path_factory.mktemp("killed")
    outs = {kill: folder / f"{kill[0]} {kill[1]}" for kill in (*KILLS, TWICE)}
    deaths = [(where, after, job.words(out)) for (where, after), out in outs.items()]
    die(*deaths, ("train", 5, job.words(outs[TWICE], "--resume")))
    return outs


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted conversion."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["slideconvert", *job.words(out)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return pico.files(out)


@pytest.mark.parametrize("kill", [*KILLS, TWICE], ids=str)
def test_resumed_run_writes_the_same_bytes_and_does_nothing_twice(
    cli: Cli,
    job: Job,
    killed: dict[Kill, Path],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill: Kill,
) -> None:
    out = shutil.copytree(killed[kill], tmp_path / "left", copy_function=shutil.copy2)
    left, there = KILLS.get(kill, (4, LAYERS | {"training-0"}))
    found = {path.name.removesuffix(".safetensors") for path in (out / WORK).glob("*safetensors*")}
    assert found == there
    steps, real = 0, training._step

    def counted(*words: Any) -> None:
        nonlocal steps
        steps += 1
        real(*words)

    monkeypatch.setattr(training, "_step", counted)
    assert cli("verify", out).code == 2, "nobody takes it for finished"
    assert cli(*job.words(out, "--resume")).code == 0
    assert steps == left
    assert pico.files(out) == whole


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
    cli: Cli, job: Job, killed: dict[Kill, Path], words: tuple[object, ...], message: str
) -> None:
    out = killed[("train", 15)]
    before = pico.files(out)
    outcome = cli(*job.words(out, *words, "--resume"))
    assert outcome.code == 2 and "other settings" in outcome.err and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and pico.files(out) == before
