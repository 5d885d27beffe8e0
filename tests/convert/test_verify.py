"""verify finds whatever is wrong with a finished checkpoint, names the layer, and exits with 1."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.serving import edit_config

Q = "model.layers.1.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pico.write(tmp_path / "source")


def converted(cli: Cli, model: Path, *words: str) -> Path:
    out = model.parent / "out"
    assert cli("convert", *MAGNITUDE, model, out, *words, "-q").code == 0
    return out


def edit_tensors(out: Path, change: Callable[[Tensors], Any]) -> None:
    """Change tensors and make the recorded hash agree, so that only the weights themselves can give it away."""
    tensors = pico.read(out)
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    edit_config(out, lambda config: config["slidesparse_config"]["files"].update({"model.safetensors": digest}))


def flip_byte(path: Path, offset: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def faulty(cli: Cli, out: Path, *words: str, source: Path | None = None) -> None:
    """verify exits with 1 and says these words, as text and as JSON."""
    against = ("--source", source) if source else ()
    outcome = cli("verify", out, *against, "-q")
    assert outcome.code == 1 and not outcome.out, outcome
    assert not [word for word in words if word not in outcome.err], outcome.err
    told = json.loads(cli("verify", out, *against, "--json").out)
    assert told["sound"] is False and all(any(word in fault for fault in told["faults"]) for word in words)


def test_sound_checkpoint(cli: Cli, model: Path) -> None:
    out = converted(cli, model)
    outcome = cli("verify", out, "--source", model)
    assert outcome.code == 0 and "sound and agree with" in outcome.out and "fault" not in outcome.err
    told = json.loads(cli("verify", out, "--json").out)
    assert told["sound"] and len(told["linears"]) == 7 * pico.LAYERS and told["tensors"] == len(pico.read(out))


FILES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "flipped weight byte": (lambda out: flip_byte(out / "model.safetensors"), ("model.safetensors", "sha256")),
    "changed kernel": (lambda out: flip_byte(out / "kernels/sparse_gemm/reference.py"), ("sparse_gemm", "sha256")),
    "missing kernel": (lambda out: (out / "kernels/README.md").unlink(), ("kernels/README.md", "missing")),
    "changed generation config": (
        lambda out: flip_byte(out / "generation_config.json"),
        ("generation_config.json", "sha256"),
    ),
    "quantization_config edited": (
        lambda out: edit_config(out, lambda config: config["quantization_config"].update(ignore=[])),
        ("quantization_config",),
    ),
    "quantization_config dropped": (
        lambda out: edit_config(out, lambda config: config.pop("quantization_config")),
        ("quantization_config",),
    ),
    "record without its hash": (
        lambda out: edit_config(out, lambda config: config["slidesparse_config"]["files"].pop("model.safetensors")),
        ("model.safetensors", "does not list"),
    ),
    "record of a layer that is not there": (
        lambda out: edit_config(
            out,
            lambda config: config["slidesparse_config"]["layers"].update(
                ghost={"shape": [1, 8], "scheme": "int8", "pattern": "2:8"}
            ),
        ),
        ("ghost",),
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_faults_of_files_and_config(cli: Cli, model: Path, fault: str) -> None:
    out = converted(cli, model)
    spoil, words = FILES[fault]
    spoil(out)
    faulty(cli, out, *words)


def both_positions_alike(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_meta"][2, 1] = 0x45  # positions 1 and 1


def unordered_positions(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_meta"][2, 1] = 0x41  # positions 1 and 0


def value_in_the_padding(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.weight_packed"][0, -1] = 3  # 88 columns of 2:6: two padded windows and more


def other_place_for_the_same_code(tensors: Tensors) -> None:
    """A window with one non-zero stored with another empty position: same weights, not the canonical bytes."""
    values, meta = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_meta"]
    values[0, :4], meta[0, 0] = torch.tensor([5, 0, 0, 0], dtype=torch.int8), 0x44
    meta[0, 0] = 0x4C  # positions 0 and 3 for values 5, 0: position 1 is the free one that belongs there


SLIDE_FAULTS: dict[str, tuple[Callable[[Tensors], None], tuple[str, ...]]] = {
    "position used twice": (both_positions_alike, (Q, "positions 1 and 1")),
    "positions out of order": (unordered_positions, (Q, "positions 1 and 0")),
    "non-canonical packing": (other_place_for_the_same_code, (Q, "canonical")),
    "value in the padding": (value_in_the_padding, ("model.layers.1.mlp.down_proj", "padding")),
    "negative scale": (lambda t: t[f"{Q}.weight_scale"].neg_(), (Q, "not positive")),
    "NaN scale": (lambda t: t[f"{Q}.weight_scale"].fill_(float("nan")), (Q, "weight_scale", "nan")),
    "wrong shape": (
        lambda t: t.update({f"{Q}.weight_meta": t[f"{Q}.weight_meta"][:, :-1].contiguous()}),
        (Q, "weight_meta"),
    ),
    "missing metadata": (lambda t: t.pop(f"{Q}.weight_meta"), (Q, "weight_meta")),
}


@pytest.mark.parametrize("fault", SLIDE_FAULTS)
def test_faults_of_slid_weights(cli: Cli, model: Path, fault: str) -> None:
    out = converted(cli, model, "--pattern", "2_6")
    spoil, words = SLIDE_FAULTS[fault]
    edit_tensors(out, spoil)
    faulty(cli, out, *words)


def one_weight_too_many(tensors: Tensors) -> None:
    tensors[f"{Q}.weight"][7, 16:24] = 1


def negative_zero(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"].view(torch.int8)
    codes[codes == 0] = -128


DENSE_FAULTS: dict[str, tuple[Callable[[Tensors], None], tuple[str, ...]]] = {
    "pattern broken": (one_weight_too_many, (Q, "row 7, columns 16 … 23 hold 8 non-zeros, 2:8 allows 6")),
    "negative zero": (negative_zero, (Q, "-0")),
    "NaN code": (lambda t: t[f"{Q}.weight"].view(torch.int8)[0, :1].fill_(127), (Q, "nan")),
}


@pytest.mark.parametrize("fault", DENSE_FAULTS)
def test_faults_of_dense_fp8_weights(cli: Cli, model: Path, fault: str) -> None:
    out = converted(cli, model, "--layout", "dense", "--scheme", "fp8")
    spoil, words = DENSE_FAULTS[fault]
    edit_tensors(out, spoil)
    faulty(cli, out, *words)


def one_step_off(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"]
    row, column = (codes[:, :] > 1).nonzero()[0]
    codes[row, column] -= 2


def lost_weights(tensors: Tensors) -> None:
    tensors[f"{Q}.weight"][5, 8:16] = 0


SOURCE_FAULTS: dict[str, tuple[Callable[[Tensors], None], tuple[str, ...]]] = {
    "a code too far off": (one_step_off, (Q, "more than rounding")),
    "a group that lost too much": (lost_weights, (Q, "row 5, block 1 lost")),
    "a norm that changed": (lambda t: t["model.norm.weight"].add_(1), ("model.norm.weight", "differs from the source")),
    "a norm that is gone": (lambda t: t.pop("model.norm.weight"), ("model.norm.weight", "missing")),
    "a tensor too many": (lambda t: t.update(extra=torch.ones(2)), ("extra", "no such tensor")),
}


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_faults_that_only_the_source_shows(cli: Cli, model: Path, fault: str) -> None:
    out = converted(cli, model, "--layout", "dense")
    spoil, words = SOURCE_FAULTS[fault]
    edit_tensors(out, spoil)
    assert cli("verify", out, "-q").code == 0
    faulty(cli, out, *words, source=model)


def test_wrong_source(cli: Cli, model: Path) -> None:
    out = converted(cli, model)
    other = pico.write(model.parent / "other", {name: tensor + 1 for name, tensor in pico.weights().items()})
    faulty(cli, out, "model.layers.0.self_attn.q_proj", "more than rounding", source=other)


def test_foreign_checkpoint_cannot_be_verified(cli: Cli, model: Path) -> None:
    outcome = cli("verify", model)
    assert outcome.code == 2 and "not written by slideconvert" in outcome.err


def test_a_conversion_whose_output_is_damaged_is_not_published(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk returns other bytes than were written: the run fails, names the file, and publishes nothing."""
    from slideconvert.convert import finish

    real = finish.bundle_kernels

    def damage(folder: Path) -> dict[str, str]:
        flip_byte(folder / "model.safetensors")
        return real(folder)

    monkeypatch.setattr(finish, "bundle_kernels", damage)
    out = model.parent / "out"
    outcome = cli("convert", *MAGNITUDE, model, out, "-q")
    assert outcome.code == 1 and "model.safetensors" in outcome.err and "nothing was published" in outcome.err
    assert not (out / "config.json").exists()


def test_unverified_output_is_marked_everywhere(cli: Cli, model: Path) -> None:
    outcome = cli("convert", *MAGNITUDE, model, model.parent / "out", "--no-verify")
    assert outcome.code == 0 and "NOT VERIFIED" in outcome.out
    report = json.loads((model.parent / "out" / "report.json").read_text())
    assert report["verified"] is None
    assert "not verified" in (model.parent / "out" / "report.html").read_text().lower()
