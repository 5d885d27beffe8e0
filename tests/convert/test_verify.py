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
from tests.helpers.weight_faults import FAULTS, SOURCE_FAULTS, SOURCES, Q, Tensors

pytest_plugins = ["tests.helpers.verify_fixtures"]


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


def test_what_is_told_of_a_sound_checkpoint(cli: Cli, model: Path) -> None:
    out = converted(cli, model)
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


@pytest.mark.parametrize("name", SOURCES)
def test_sound_ones(cli: Cli, folders: dict[str, Path], name: str) -> None:
    outcome = cli("verify", folders[name], "--source", folders[SOURCES[name]])
    assert outcome.code == 0 and "sound and agree with" in outcome.out and "fault" not in outcome.err


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_faults_of_weights(cli: Cli, damaged: Callable[[str], Path], name: str, fault: str) -> None:
    spoil, words = FAULTS[name, fault]
    out = damaged(name)
    edit_tensors(out, spoil)
    faulty(cli, out, *words)


@pytest.mark.parametrize(("name", "fault"), SOURCE_FAULTS)
def test_faults_that_only_the_source_shows(
    cli: Cli, folders: dict[str, Path], damaged: Callable[[str], Path], name: str, fault: str
) -> None:
    spoil, words = SOURCE_FAULTS[name, fault]
    out = damaged(name)
    edit_tensors(out, spoil)
    if fault != "a row that took a group of the next":  # which may no longer ascend
        assert cli("verify", out, "-q").code == 0
    faulty(cli, out, *words, source=folders[SOURCES[name]])


@pytest.mark.parametrize("name", SOURCES)
def test_a_wrong_source_is_found(cli: Cli, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(9)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in pico.read(folders["pico" if SOURCES[name] == "pico" else "lively"]).items()
    }
    layers = pico.LAYERS if SOURCES[name] == "pico" else 2
    other = pico.write(tmp_path / "other", tensors, {"num_hidden_layers": layers})
    close = name in ("solved", "gqs", "dense")
    words = "the cosine between it and the source is" if close else "more than rounding"
    faulty(cli, folders[name], Q, words, source=other)


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
