"""Killed (kill -9) anywhere in a calibration or in training, and resumed, a conversion writes the very same bytes."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.run import RunSettings
from slideconvert.calibrate.store import LayerStore
from slideconvert.checkpoint.files import CHANNEL_SCALES, SINGLE
from slideconvert.cli import main
from slideconvert.convert.pipeline import convert
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import SCHEMES
from slideconvert.core.weights import floats
from slideconvert.errors import InputError
from slideconvert.plan.presets import PRESETS
from slideconvert.recover.options import Curve
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, brief_presets, plan_for, write_model, write_text, write_tokenizer
from tests.helpers.mortal import WORK, Death, die, watch
from tests.helpers.outliers import enlarged

Kill = tuple[str, int, str]
KILLS: list[Kill] = [
    ("rename", 1, "balanced"),  # channel scales found, and lost
    ("solve", 0, "balanced"),  # they alone are finished
    ("solve", 6, "balanced"),  # in the second layer, two of its four inputs solved
    ("keep", 1, "balanced"),  # the second layer solved, and lost
    ("rename", 4, "balanced"),  # the same, its file written but not yet by its name
    ("convert", 7, "balanced"),  # the second layer kept, nothing of it in a shard
    ("write", 20, "balanced"),  # some bytes into a shard
    ("journal", 2, "balanced"),  # a layer's bytes written, and not yet in the journal
    ("solve", 6, "quality"),
    ("train", 6, "quality"),  # in block recovery of the second layer
    ("train", 14, "quality"),  # in the second epoch of the end-to-end pass
    ("keep", 4, "quality"),  # one of three layers kept as trained
    ("convert", 0, "quality"),  # all kept as trained, nothing in a shard
    ("journal", 2, "quality"),
]
"""Where, before which call, and with which preset. Four inputs a layer are solved, three layers kept by turns."""
TWICE: Kill = ("solve", 7, "quality")
"""Resumed, and killed again in the last step of training."""


class Job:
    """A pico model with biases and large channels, a text for it, and the words to convert it with either preset."""

    def __init__(self, folder: Path) -> None:
        self.source, self.text = write_model(folder / "source", "qwen2"), write_text(folder / "text.jsonl")
        tensors = enlarged(pico.read(self.source), pico.LAYERS)
        save_file(tensors, self.source / SINGLE, metadata={"format": "pt"})

    def words(self, out: Path, preset: str, *more: object) -> list[str]:
        words = ("--preset", preset, "--pattern", "2_4", "--calibration", self.text, *FLAGS, "--batch-tokens", 72)
        return [
            str(word)
            for word in ("convert", self.source, out, *words, "--shard-gb", "0.00005", "--device", "cpu", "-q", *more)
        ]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little training here as in the processes that die."""
    for name, preset in brief_presets().items():
        monkeypatch.setitem(PRESETS, name, preset)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def killed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[Kill, Path]:
    """An output folder for each of KILLS and for TWICE, left by processes that died there."""
    folder = tmp_path_factory.mktemp("killed")
    outs = {kill: folder / f"{kill[2]} {kill[0]} {kill[1]}" for kill in (*KILLS, TWICE)}
    deaths = [Death(where, after, job.words(out, preset)) for (where, after, preset), out in outs.items()]
    die(*deaths, Death("train", 11, job.words(outs[TWICE], "quality", "--resume")))
    return outs


@pytest.fixture
def left(killed: dict[Kill, Path], tmp_path: Path) -> Callable[[Kill], Path]:
    """A copy of what a process left, to go on with."""
    return lambda kill: shutil.copytree(killed[kill], tmp_path / "left", copy_function=shutil.copy2)


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of uninterrupted conversions, by preset."""
    folder, files = tmp_path_factory.mktemp("whole"), {}
    for preset in ("balanced", "quality"):
        with pytest.MonkeyPatch.context() as patch:
            for name, brief_preset in brief_presets().items():
                patch.setitem(PRESETS, name, brief_preset)
            patch.setattr("sys.argv", ["slideconvert", *job.words(folder / preset, preset)])
            with pytest.raises(SystemExit, match="0"):
                main()
        files[preset] = pico.files(folder / preset)
        assert CHANNEL_SCALES in files[preset]
    return files


@pytest.mark.parametrize("kill", [*KILLS, TWICE], ids=str)
def test_resumed_run_writes_the_same_bytes(
    cli: Cli, job: Job, left: Callable[[Kill], Path], whole: dict[str, dict[str, bytes]], kill: Kill
) -> None:
    out = left(kill)
    assert cli("verify", out).code == 2, "nobody takes it for finished"
    assert cli(*job.words(out, kill[2], "--resume")).code == 0
    assert pico.files(out) == whole[kill[2]]


@pytest.mark.parametrize(
    ("kill", "solved", "trained"),
    [
        (("solve", 0, "balanced"), 12, 12),
        (("solve", 6, "balanced"), 8, 8),
        (("keep", 1, "balanced"), 8, 8),
        (("convert", 7, "balanced"), 4, 4),
        (("train", 6, "quality"), 8, 8 + 4),  # two epochs of two steps for each of two layers, and end to end
        (("train", 14, "quality"), 0, 2),  # the first epoch was kept
        (("keep", 4, "quality"), 0, 0),  # and the second
        (("convert", 0, "quality"), 0, 0),
        (("journal", 2, "quality"), 0, 0),
    ],
    ids=str,
)
def test_what_is_finished_is_not_done_again(
    cli: Cli,
    job: Job,
    left: Callable[[Kill], Path],
    monkeypatch: pytest.MonkeyPatch,
    kill: Kill,
    solved: int,
    trained: int,
) -> None:
    calls: Counter[str] = Counter()
    watch(monkeypatch, lambda name, _: calls.update([name]))
    assert cli(*job.words(left(kill), kill[2], "--resume")).code == 0
    assert (calls["solve"], calls["train"]) == (solved, trained)


def test_a_layer_is_saved_before_the_next_begins(killed: dict[Kill, Path]) -> None:
    """And nothing of the work is left in a finished output (the comparison of all files above)."""
    for kill, kept in {("solve", 0, "balanced"): 0, ("solve", 6, "balanced"): 1, ("convert", 7, "balanced"): 2}.items():
        assert len(list((killed[kill] / WORK).glob("layer-*.safetensors"))) == kept
    for kill, kept in {
        ("rename", 1, "balanced"): ["scales.json.tmp"],
        ("solve", 0, "balanced"): ["scales.json"],
        ("rename", 4, "balanced"): ["layer-00000.safetensors", "layer-00001.safetensors.tmp", "scales.json"],
    }.items():
        assert sorted(path.name for path in (killed[kill] / WORK).iterdir()) == kept
    assert len(list((killed[("keep", 4, "quality")] / WORK).glob("trained-*.safetensors"))) == 1


def test_a_layer_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Names of places with codes among them, weights without, notes, errors and both curves."""
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    kept = LayerResult(
        weights={
            "self_attn.q_proj": SCHEMES["int8"].quantize(weight),
            "self_attn.codes": SCHEMES["fp8"].quantize(weight),
            "mlp.up_proj": weight.bfloat16(),
            "mlp.down_proj": weight.T.half(),
        },
        activation_errors={"self_attn.q_proj": 0.125, "mlp.up_proj": None},
        notes={"self_attn.q_proj": ("one", "two"), "mlp.up_proj": ()},
        curve=Curve((1.0, math.inf, 0.5), best=2, skipped=3),
        end=Curve((2.0,), best=0),
    )
    store = LayerStore(tmp_path / "work", "layer")
    assert store.load(7) is None
    store.save(7, kept)
    found = LayerStore(tmp_path / "work", "layer").load(7)
    assert found and found.weights.keys() == kept.weights.keys()
    for place, before in kept.weights.items():
        after = found.weights[place]
        if isinstance(before, QuantizedWeight):
            assert isinstance(after, QuantizedWeight) and after.scheme == before.scheme
            assert (after.codes.view(torch.uint8) == before.codes.view(torch.uint8)).all()
            assert torch.equal(after.scale, before.scale)
        else:
            assert isinstance(after, torch.Tensor) and after.dtype == before.dtype and torch.equal(after, before)
    for part in ("activation_errors", "notes", "curve", "end"):
        assert getattr(found, part) == getattr(kept, part)


def test_a_layer_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    """It tells the errors of its linears as well, which nothing reads."""
    store, weight = LayerStore(tmp_path, "layer"), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    store.save(0, LayerResult(weights={"mlp.up_proj": weight}, notes={"mlp.up_proj": ("one",)}))
    with safe_open(store.path(0), "pt") as file:
        metadata = {**file.metadata(), "errors": json.dumps({"mlp.up_proj": 0.125})}
    save_file({"mlp.up_proj": weight}, store.path(0), metadata)
    found = store.load(0)
    assert found and torch.equal(floats(found.weights["mlp.up_proj"]), weight)
    assert found.notes == {"mlp.up_proj": ("one",)}


# ---- another job


CHANGES: dict[str, tuple[tuple[object, ...], str]] = {
    "preset": (("--preset", "fast"), "recipe"),
    "method": (("--method", "hessian"), "recipe"),
    "pattern": (("--pattern", "2_6"), "recipe"),
    "samples": (("--samples", 8), "samples"),
    "length": (("--length", 23), "length"),
    "seed": (("--seed", 1), "seed"),
    "batch": (("--batch-tokens", 48), "batch_tokens was 72, is 48"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_settings_are_refused(cli: Cli, job: Job, left: Callable[[Kill], Path], change: str) -> None:
    out, (words, message) = left(("solve", 6, "balanced")), CHANGES[change]
    before = pico.files(out)
    outcome = cli(*job.words(out, "balanced", *words, "--resume"))
    assert outcome.code == 2 and "other settings" in outcome.err and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and pico.files(out) == before


def test_another_device_is_refused(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    plan = plan_for(job.source, job.text, method="obs")
    monkeypatch.setattr("slideconvert.calibrate.input_group._solve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(plan, tmp_path / "out")
    with pytest.raises(InputError, match="device was cpu, is cuda"):
        convert(plan, tmp_path / "out", settings=RunSettings("cuda"), resume=True)
    other = "bfloat16" if RunSettings().dtype == torch.float32 else "float32"
    with pytest.raises(InputError, match=f"dtype was torch.*, is torch.{other}"):
        convert(plan, tmp_path / "out", settings=RunSettings(precision=other), resume=True)


def test_another_number_of_threads_is_refused(cli: Cli, job: Job, left: Callable[[Kill], Path]) -> None:
    """On a CPU it decides in which order numbers are added, as the batch does."""
    out = left(("solve", 6, "balanced"))
    try:
        torch.set_num_threads(2)
        outcome = cli(*job.words(out, "balanced", "--resume"))
    finally:
        torch.set_num_threads(1)
    assert outcome.code == 2 and "threads (OMP_NUM_THREADS) was 1, is 2" in outcome.err


def test_where_hidden_states_lie_may_change(
    cli: Cli, job: Job, left: Callable[[Kill], Path], whole: dict[str, dict[str, bytes]]
) -> None:
    """And so may the optimizer's place on this device: neither decides a number here."""
    out = left(("solve", 6, "quality"))
    assert cli(*job.words(out, "quality", "--keep-on", "disk", "--offload", "--resume")).code == 0
    assert pico.files(out) == whole["quality"]


def other_text(job: Job) -> None:
    write_text(job.text, seed=1)


def other_tokenizer(job: Job) -> None:
    """The same words with other numbers."""
    write_tokenizer(job.source)
    text = (job.source / "tokenizer.json").read_text()
    (job.source / "tokenizer.json").write_text(
        text.replace('"w5"', '"x"').replace('"w6"', '"w5"').replace('"x"', '"w6"')
    )


@pytest.mark.parametrize("change", [other_text, other_tokenizer])
def test_other_tokens_are_refused(
    cli: Cli, job: Job, left: Callable[[Kill], Path], tmp_path: Path, change: Callable[[Job], None]
) -> None:
    """The same names, other contents."""
    out, kept = left(("solve", 6, "balanced")), {path: path.read_bytes() for path in (job.text, *job.source.iterdir())}
    before = pico.files(out)
    try:
        change(job)
        outcome = cli(*job.words(out, "balanced", "--resume"))
    finally:
        for path, data in kept.items():
            if path.read_bytes() != data:
                path.write_bytes(data)
    assert outcome.code == 2 and "other settings" in outcome.err and "tokens" in outcome.err
    assert pico.files(out) == before


# ---- what an error leaves


@pytest.fixture
def data_set(job: Job, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every data set give these rows, or raise this."""
    import datasets

    def give(rows: Any) -> None:
        def load(*_: object, **__: object) -> Any:
            if isinstance(rows, Exception):
                raise rows
            return rows

        monkeypatch.setattr(datasets, "load_dataset", load)

    return give


def interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[object]) -> None:
    """Run a command that is interrupted in its second layer."""
    from slideconvert.calibrate import engine

    real, calls = engine.compress_input_group, 0

    def stop(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "compress_input_group", stop)
        assert cli(*words).code == 130


def test_a_data_set_that_changes_or_is_out_of_reach_costs_nothing_finished(
    cli: Cli, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_set: Callable[[Any], None]
) -> None:
    rows = [json.loads(line) for line in job.text.read_text().splitlines()]
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["convert", job.source, out, "--method", "obs", "--calibration", "org/set:train", *FLAGS, "-q"]
    data_set(rows)
    interrupted(cli, monkeypatch, words)
    before = pico.files(out)
    assert str(WORK / "layer-00000.safetensors") in before
    for given, message, code in ((ConnectionError("no route"), "no route", 75), (rows[::-1], "other settings", 2)):
        data_set(given)
        outcome = cli(*words, "--resume")
        assert outcome.code == code and message in outcome.err and pico.files(out) == before
    data_set(rows)
    assert cli(*words, "--resume").code == 0
    assert cli(*(whole if word == out else word for word in words)).code == 0
    assert pico.files(out) == pico.files(whole)


def test_bad_input_on_the_way_costs_nothing_finished_earlier(
    cli: Cli,
    job: Job,
    left: Callable[[Kill], Path],
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, dict[str, bytes]],
) -> None:
    """A source that cannot be read for a moment, say: a first run would leave nothing, a resumed one all it found."""
    from slideconvert.models import decoder

    def unreadable(*_: object) -> object:
        raise InputError("model.safetensors cannot be read")

    out = left(("convert", 7, "balanced"))
    before = pico.files(out)
    with monkeypatch.context() as patch:
        patch.setattr(decoder.Decoder, "layer", unreadable)
        outcome = cli(*job.words(out, "balanced", "--resume"))
    assert outcome.code == 2 and "cannot be read" in outcome.err
    assert before.keys() <= pico.files(out).keys()
    assert cli(*job.words(out, "balanced", "--resume")).code == 0
    assert pico.files(out) == whole["balanced"]


def test_out_of_memory_keeps_what_is_finished(
    cli: Cli, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, dict[str, bytes]]
) -> None:
    """The hint is true: another place for hidden states, and --resume, go on to the same bytes."""
    from slideconvert.models import decoder

    out, real = tmp_path / "out", decoder.Layer.inputs

    def full(*args: Any) -> Any:
        if (out / WORK / "layer-00000.safetensors").is_file():  # in the second layer
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(decoder.Layer, "inputs", full)
        outcome = cli(*job.words(out, "balanced"))
    assert outcome.code == 2 and "--resume and --offload (or --keep-on disk)" in outcome.err
    assert cli(*job.words(out, "balanced", "--keep-on", "disk", "--resume")).code == 0
    assert pico.files(out) == whole["balanced"]
