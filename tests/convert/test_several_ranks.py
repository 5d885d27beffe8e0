"""One conversion on several ranks, through the command line: real processes that gloo connects on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert.calibrate import engine
from slideconvert.calibrate.store import LayerStore
from slideconvert.checkpoint.writer import WeightWriter
from slideconvert.convert import pipeline
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.errors import InputError
from slideconvert.plan.presets import PRESETS
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.calibrated import quality, write_model, write_text
from tests.helpers.launches import Ended, environment, free_port, launch
from tests.helpers.mortal import STAGING, WORK

SHARDS = ("--shard-gb", "0.00003")
"""Makes a file of each layer of the pico model, and one of the other tensors."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A model, and the files that one process makes of it without calibration."""
    folder = tmp_path_factory.mktemp("alone")
    source = pico.write(folder / "source", pico.weights(layers=4), {"num_hidden_layers": 4})
    from slideconvert import ConvertOptions, convert

    convert(source, folder / "out", ConvertOptions(method="magnitude", shard_gb=0.00003))
    files = pico.files(folder / "out")
    assert len([name for name in files if name.endswith(".safetensors")]) == 5
    return source, files


def done(ended: list[Ended]) -> None:
    assert [one.code for one in ended] == [0] * len(ended), "\n".join(one.err for one in ended)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_without_calibration_the_bytes_are_those_of_one_process(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path, count: int
) -> None:
    """With more ranks than files, too; and the first alone speaks."""
    source, files = alone
    ended = launch(tmp_path / "logs", ["convert", source, tmp_path / "out", *MAGNITUDE, *SHARDS], count)
    done(ended)
    assert pico.files(tmp_path / "out") == files
    assert "re-read, intact" in ended[0].out
    assert [(one.out, one.err) for one in ended[1:]] == [("", "")] * (count - 1)


def test_torchrun(alone: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, files = alone
    words = ("-m", "slideconvert", "convert", source, tmp_path / "out", *MAGNITUDE, *SHARDS, "--json")
    command = [*TORCHRUN, "--master-port", free_port(), *words]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["totals"]["weights"] and pico.files(tmp_path / "out") == files


# ---- resuming with another number of ranks


def die_in_the_second_unit(rank: int, patch: pytest.MonkeyPatch) -> None:
    """Between its bytes and its line in the journal."""
    real, calls = WeightWriter._journal, []

    def journal(*args: Any) -> None:
        calls.append(args)
        if len(calls) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)

    patch.setattr(WeightWriter, "_journal", journal)


def knows_of(units: int) -> Callable[[int, pytest.MonkeyPatch], None]:
    """The first rank has gathered the lines of so many units from all journals."""

    def change(rank: int, patch: pytest.MonkeyPatch) -> None:
        real = pipeline._writer

        def writer(plan: Any, folder: Path) -> WeightWriter:
            made = real(plan, folder)
            assert rank or len((folder / "journal.jsonl").read_text().splitlines()) == units
            return made

        patch.setattr(pipeline, "_writer", writer)

    return change


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_any_number_of_ranks_continues(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path, cli: Cli, before: int, after: int
) -> None:
    """Ranks that live on without the first one end by themselves."""
    source, files = alone
    words = ["convert", source, tmp_path / "out", *MAGNITUDE, *SHARDS, "-q"]
    killed = launch(tmp_path / "logs", words, before, die_in_the_second_unit)
    assert killed[0].code == -signal.SIGKILL and all(one.code for one in killed)
    journals = list((tmp_path / "out" / STAGING).glob("journal*.jsonl"))
    units = sum(len(path.read_text().splitlines()) for path in journals)
    assert len(journals) == before and units >= 1 and cli("verify", tmp_path / "out").code == 2
    done(launch(tmp_path / "logs", [*words, "--resume"], after, knows_of(units)))
    assert pico.files(tmp_path / "out") == files


# ---- failures and refusals


def fails(on: int, error: Exception) -> Callable[[int, pytest.MonkeyPatch], None]:
    def change(rank: int, patch: pytest.MonkeyPatch) -> None:
        def convert_linear(*_: Any) -> None:
            raise error

        if rank == on:
            patch.setattr(pipeline, "convert_linear", convert_linear)

    return change


@pytest.mark.parametrize("on", [0, 1])
def test_a_rank_that_fails_ends_all_with_its_error(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path, on: int
) -> None:
    """And with its exit code; of the others the first alone repeats it. A new folder goes, as with one process."""
    words = ["convert", alone[0], tmp_path / "out", *MAGNITUDE, *SHARDS, "-q"]
    ended = launch(tmp_path / "logs", words, 3, fails(on, InputError("a fault", hint="a way out")))
    line = f"error: rank {on}: a fault (a way out)\n"
    assert [one.code for one in ended] == [2, 2, 2]
    assert [one.err for one in ended] == [line if rank in (0, on) else "" for rank in range(3)]
    assert not (tmp_path / "out").exists()


def test_a_defect_on_a_rank_ends_all_and_leaves_what_can_be_resumed(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    source, files = alone
    words = ["convert", source, tmp_path / "out", *MAGNITUDE, *SHARDS, "-q"]
    ended = launch(tmp_path / "logs", words, 2, fails(1, ValueError("unforeseen")))
    assert [one.code for one in ended] == [70, 70]
    assert "error: rank 1: ValueError: unforeseen" in ended[0].err and "a defect of slideconvert" in ended[1].err
    done(launch(tmp_path / "logs", [*words, "--resume"], 2))
    assert pico.files(tmp_path / "out") == files


def test_a_source_that_is_missing_is_told_once(tmp_path: Path) -> None:
    ended = launch(tmp_path / "logs", ["convert", tmp_path / "nowhere", tmp_path / "out", *MAGNITUDE, "-q"], 2)
    assert [one.code for one in ended] == [2, 2] and ended[0].err.startswith("error: rank 0: ") and not ended[1].err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["allocate", "SOURCE", "r.yaml", "--density", "0.8"], "allocate runs in one process"),
        (["verify", "SOURCE"], "verify runs in one process"),
        (["convert", "SOURCE", "OUT", "--density", "0.8", "--preset", "fast"], "a target to choose patterns for, on 2"),
        (["convert", "SOURCE", "OUT", "--low-disk", *MAGNITUDE], "--low-disk on 2 ranks"),
        (["convert", "SOURCE", "OUT", "--device", "cuda:0", *MAGNITUDE], "each rank takes a GPU of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_one_process_does_is_refused(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path, words: list[str], said: str
) -> None:
    names = {"SOURCE": alone[0], "OUT": tmp_path / "out"}
    ended = launch(tmp_path / "logs", [names.get(word, word) for word in words])
    assert [one.code for one in ended] == [2, 2] and said in ended[0].err, ended
    assert not (tmp_path / "out").exists()


def test_an_incomplete_environment_is_refused(
    alone: tuple[Path, dict[str, bytes]], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    outcome = cli("convert", alone[0], tmp_path / "out", *MAGNITUDE, "-q")
    assert outcome.code == 2 and "MASTER_ADDR is not set" in outcome.err and "torchrun" in outcome.err


# ---- with calibration

CALIBRATION = ("--samples", 16, "--length", 96, "--batch-tokens", 192)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of two layers and a text."""
    folder = tmp_path_factory.mktemp("calibration")
    return write_model(folder / "source", num_hidden_layers=2), write_text(folder / "text.jsonl", documents=60)


def told(out: Path) -> tuple[dict[str, float], list[list[float]]]:
    """Output errors by linear, and the losses of all trainings, as reported."""
    report = json.loads((out / "report.json").read_text())
    errors = {layer["name"]: layer["output_error"] for layer in report["layers"]}
    return errors, [training["losses"] for training in report["training"]]


def calibrated(calibration: tuple[Path, Path], out: Path, *more: object) -> list[object]:
    source, text = calibration
    words = ("--pattern", "2_4", "--layout", "dense", "--calibration", text, *CALIBRATION, "-q")
    return ["convert", source, out, *words, *more]


def test_wanda_keeps_the_same_weights_on_ranks(calibration: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """Its masks depend on sums over 1,536 tokens, which round by 1e-4 at most; no two scores of a block are that near
    and weights are not updated, so that the order of sums changes nothing."""
    assert cli(*calibrated(calibration, tmp_path / "one", "--preset", "fast")).code == 0
    done(launch(tmp_path / "logs", calibrated(calibration, tmp_path / "two", "--preset", "fast"), 2))
    one, two = pico.read(tmp_path / "one"), pico.read(tmp_path / "two")
    assert all(one[name].equal(two[name]) for name in one) and one.keys() == two.keys()
    assert told(tmp_path / "two")[0] == pytest.approx(told(tmp_path / "one")[0], rel=1e-4)


def test_training_on_ranks_differs_as_with_another_batch_size(
    calibration: tuple[Path, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v of the first layer have the same inputs in both, and codes that differ where a sum is rounded across a
    border: H is off by 1,536 · 2^-24 = 1e-4 at most and typically by the root of it, 2e-6, and damped to a condition of
    some hundreds, so weights of 127 steps move by some hundredths of a step, and one code in 20 may change, by one.
    What follows has other inputs and is as good: losses and errors differ by less than a tenth, as they do between one
    process and itself with another --batch-tokens."""
    monkeypatch.setitem(PRESETS, "quality", quality(2, 1))
    assert cli(*calibrated(calibration, tmp_path / "one", "--preset", "quality")).code == 0
    done(launch(tmp_path / "logs", calibrated(calibration, tmp_path / "two", "--preset", "quality"), 2))
    one, two = told(tmp_path / "one")[1], told(tmp_path / "two")[1]
    assert [len(losses) for losses in two] == [3, 3, 2]
    for before, after in zip(one, two, strict=True):
        assert after == pytest.approx(before, rel=0.1)
    assert cli("verify", tmp_path / "two", "--source", calibration[0]).code == 0


def test_solved_weights_of_the_first_inputs_differ_by_rounding(
    calibration: tuple[Path, Path], tmp_path: Path, cli: Cli
) -> None:
    """See above; without training."""
    words = ("--preset", "balanced", "--block-epochs", 0)
    assert cli(*calibrated(calibration, tmp_path / "one", *words)).code == 0
    done(launch(tmp_path / "logs", calibrated(calibration, tmp_path / "two", *words), 3))
    one, two = pico.read(tmp_path / "one"), pico.read(tmp_path / "two")
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{part}.weight"
        change = (one[name].int() - two[name].int()).abs()
        assert int(change.max()) <= 1 and float((change > 0).float().mean()) < 0.05
    assert told(tmp_path / "two")[0] == pytest.approx(told(tmp_path / "one")[0], rel=0.1)


def killed_after_a_layer(rank: int, patch: pytest.MonkeyPatch) -> None:
    """All ranks die when the first layer is kept: the first before it begins the second."""
    real = engine._compress_layer
    calls: list[object] = []

    def compress(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    patch.setattr(engine, "_compress_layer", compress)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_calibration_continues_with_any_number_of_ranks(
    calibration: tuple[Path, Path], tmp_path: Path, before: int, after: int
) -> None:
    """Finished layers stay as they are."""
    words = calibrated(calibration, tmp_path / "out", "--preset", "balanced", "--block-epochs", 1)
    assert {one.code for one in launch(tmp_path / "logs", words, before, killed_after_a_layer)} == {-signal.SIGKILL}
    kept = LayerStore(tmp_path / "out" / WORK, "layer").load(0)
    assert kept is not None
    done(launch(tmp_path / "logs", [*words, "--resume"], after))
    written = pico.read(tmp_path / "out")
    for submodule, weight in kept.weights.items():
        assert isinstance(weight, QuantizedWeight)
        assert weight.codes.equal(written[f"model.layers.0.{submodule}.weight"])
    assert len(told(tmp_path / "out")[1]) == 2


def test_more_ranks_than_sequences_are_refused(calibration: tuple[Path, Path], tmp_path: Path) -> None:
    words = calibrated(calibration, tmp_path / "out", "--preset", "fast", "--samples", 3)
    ended = launch(tmp_path / "logs", words, 3)
    assert {one.code for one in ended} == {2}
    assert "3 ranks, but only 2 calibration sequences to fit to (start fewer ranks" in ended[0].err


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(calibration: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    """NCCL, through torchrun: the bounds of ranks on the CPU."""
    words = ("--preset", "balanced", "--precision", "float32", "--device", "cuda")
    assert cli(*calibrated(calibration, tmp_path / "one", *words)).code == 0
    command = [*TORCHRUN, "--master-port", free_port(), "-m", "slideconvert"]
    subprocess.run(list(map(str, [*command, *calibrated(calibration, tmp_path / "two", *words)])), check=True)
    one, two = told(tmp_path / "one"), told(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=0.1)
    for before, after in zip(one[1], two[1], strict=True):
        assert after == pytest.approx(before, rel=0.1)
