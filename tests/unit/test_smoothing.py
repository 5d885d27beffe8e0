"""Channel scales: exact, found where they help, verified, kept through a chain of conversions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.calibrate import smoothing
from slideconvert.checkpoint.files import CHANNEL_SCALES, SINGLE
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert import journal, pipeline
from slideconvert.core.schemes import INT8
from slideconvert.smooth.scales import Scales, Smoothed, added, between
from slideconvert.smooth.search import best_exponents, output_error
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.demo import TEXT
from tests.helpers.outliers import BALANCED, CALIBRATION, LARGE, NORMS, READERS, UP
from tests.helpers.serving import drop_hashes, edit_json

SIZES = {maker: pico.INNER if maker == UP else pico.HIDDEN for maker in READERS}
CHANGED = {*NORMS, *(submodule for submodules in READERS.values() for submodule in submodules)}


def random_scales(layers: int, seed: int) -> Scales:
    made = torch.Generator().manual_seed(seed)
    return {
        layer: {maker: torch.randint(-6, 7, (size,), generator=made) for maker, size in SIZES.items()}
        for layer in range(layers)
    }


def slow_scaled(name: str, whole: Tensor, scales: dict[str, Tensor]) -> Tensor:
    """Element by element: divided by the scale of what makes it, multiplied by that of what it reads."""
    own, columns = name.removeprefix("model.layers.0.").removesuffix(".weight"), whole.shape[-1]
    read = next((maker for maker, submodules in READERS.items() if own in submodules), None)
    out = []
    for at, one in enumerate(whole.flatten().tolist()):
        made = at // columns if whole.dim() > 1 else at
        exponent = int(scales[read][at % columns]) if read else 0
        exponent -= int(scales[own][made]) if own in scales else 0
        out.append(one * 2.0**exponent)
    return torch.tensor(out).to(whole.dtype)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_part_of_a_tensor_is_scaled_by_its_rows_and_columns(data: st.DataObject, source: Checkpoint) -> None:
    scales = random_scales(1, 0)
    smooth = Smoothed.of(source, scales)
    name = f"model.layers.0.{data.draw(st.sampled_from([*sorted(CHANGED), 'self_attn.o_proj']))}.weight"
    whole = source.read(name)
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    assert torch.equal(smooth.read_flat(name, start, stop), slow_scaled(name, whole, scales[0])[start:stop])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(pico.write(tmp_path_factory.mktemp("pico") / "source", pico.weights()))


def test_scales_are_undone_to_the_bit_and_leave_other_tensors_alone(source: Checkpoint) -> None:
    scales = random_scales(2, 1)
    back, smooth = Smoothed.of(source, between(scales, {})), Smoothed.of(source, scales)
    changed = {name for name in source.tensors if not torch.equal(smooth.read(name), source.read(name))}
    assert changed == {f"model.layers.{layer}.{one}.weight" for layer in (0, 1) for one in CHANGED}
    for name in changed:
        scaled = smooth.read(name)
        for factor in back.factors[name]:
            scaled *= factor.view(-1).to(scaled.dtype) if scaled.dim() == 1 else factor.to(scaled.dtype)
        assert torch.equal(scaled, source.read(name))


def test_a_bias_of_up_proj_takes_the_scale_of_its_rows(source: Checkpoint) -> None:
    name, scales = f"model.layers.0.{UP}", random_scales(1, 2)
    biased = replace(
        source, tensors=source.tensors | {f"{name}.bias": source.tensors["model.layers.0.mlp.down_proj.weight"]}
    )
    smooth = Smoothed.of(biased, scales)
    (factor,) = smooth.factors[f"{name}.bias"]
    assert torch.equal(factor[0], torch.exp2(-scales[0][UP].float()))


def test_scales_add_up_and_nothing_is_kept_of_those_that_cancel() -> None:
    first, then = random_scales(2, 2), random_scales(3, 3)
    both = added(first, then)
    assert set(both) == {0, 1, 2} and torch.equal(both[2][NORMS[0]], then[2][NORMS[0]])
    assert all(torch.equal(both[1][maker], first[1][maker] + then[1][maker]) for maker in READERS)
    assert between(first, first) == {} and set(between(first, both)) == {0, 1, 2}


def slow_error(inputs: Tensor, weight: Tensor, exponents: Tensor) -> float:
    """Token by token and row by row, float64."""
    found = []
    scale = [2.0 ** int(one) for one in exponents]
    rows = []
    for row in weight.double():
        own = [float(one) * by for one, by in zip(row, scale, strict=True)]
        step = max(map(abs, own)) / 127
        rows.append([round(one / step) * step for one in own])
    for token in inputs.double():
        own = [float(one) / by for one, by in zip(token, scale, strict=True)]
        step = max(map(abs, own)) / 127
        codes = [round(one / step) * step for one in own]
        served = torch.tensor([sum(a * b for a, b in zip(codes, row, strict=True)) for row in rows]).double()
        exact = weight.double() @ token
        found.append(float((served - exact).square().sum() / exact.square().sum()))
    return sum(found) / len(found)


def test_the_error_is_that_of_served_products_and_a_large_channel_is_taken_over() -> None:
    made = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(24, 40, generator=made), torch.randn(16, 40, generator=made)
    inputs[:, 7] *= 200
    weight[:, 7] /= 200
    found = best_exponents(inputs, [weight], [INT8])
    assert int(found.argmax()) == 7 and int(found[7]) >= 3
    for exponents in (torch.zeros(40, dtype=torch.int64), found):
        fast = output_error(inputs, [weight], [INT8], exponents)
        # A quotient near the border of a code may round to either side in float32: a code in a thousand at most.
        assert fast == pytest.approx(slow_error(inputs, weight, exponents), rel=0.02)
    assert output_error(inputs, [weight], [INT8], found) < 0.02 * output_error(inputs, [weight], [INT8], 0 * found)


def test_nothing_is_scaled_where_it_does_not_help() -> None:
    made = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(64, 32, generator=made), torch.randn(16, 32, generator=made)
    assert not best_exponents(inputs, [weight], [INT8]).any()
    inputs[:, 5] = 0  # a dead channel has no size to speak of
    inputs[:, 7] *= 500
    found = best_exponents(inputs, [weight], [INT8])
    assert int(found[5]) == 0 and int(found[7]) > 0


def test_large_channels_cost_nothing_when_smoothed(cli: Cli, tmp_path: Path, outliers: Path, smoothed: Path) -> None:
    plain = tmp_path / "plain"
    assert cli("convert", outliers, plain, "--no-smooth", *BALANCED).code == 0
    words = ("--text", TEXT, "--sequences", 16, "--length", 64, "--activations", "quantized", "--json")
    told = json.loads(cli("eval", outliers, smoothed, plain, *words).out)["results"]
    _, ours, theirs = (row["kl_mean"] for row in told)
    assert ours < 0.7 * theirs
    scales = json.loads((smoothed / CHANNEL_SCALES).read_text())
    for norms in scales.values():
        for exponents in norms.values():
            others = [one for at, one in enumerate(exponents) if at not in LARGE]
            assert min(exponents[at] for at in LARGE) > sum(others) / len(others) + 2
    assert not (plain / CHANNEL_SCALES).exists()


def test_it_is_told_recorded_and_verified(cli: Cli, tmp_path: Path, outliers: Path, smoothed: Path) -> None:
    record = json.loads((smoothed / "config.json").read_text())["slidesparse_config"]
    told = {name.rpartition("layers.")[2][2:] for name, linear in record["layers"].items() if linear.get("smoothed")}
    assert told == {submodule for submodules in READERS.values() for submodule in submodules}
    assert CHANNEL_SCALES in record["files"]
    assert any("scales" in note for note in json.loads((smoothed / "report.json").read_text())["notes"])
    assert cli("verify", smoothed, "--source", outliers).code == 0
    slid = tmp_path / "slid"  # what is made of it takes the scales along, and can be compared with either source
    assert cli("relayout", smoothed, slid, "--layout", "slide").code == 0
    assert (slid / CHANNEL_SCALES).read_bytes() == (smoothed / CHANNEL_SCALES).read_bytes()
    for source in (smoothed, outliers):
        assert cli("verify", slid, "--source", source).code == 0


def test_a_norm_that_was_not_scaled_alike_is_found(cli: Cli, tmp_path: Path, outliers: Path, smoothed: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(smoothed, out)
    tensors = load_file(out / SINGLE)
    tensors["model.layers.1.input_layernorm.weight"][LARGE[0]] *= 2
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    drop_hashes(out)
    outcome = cli("verify", out, "--source", outliers)
    assert outcome.code == 1 and "model.layers.1.input_layernorm.weight: differs from the source" in outcome.err


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda scales: scales["1"][NORMS[0]].reverse(), "sha256 differs"),
        (lambda scales: scales["1"][NORMS[0]].pop(), "whole numbers of at most"),
        (lambda scales: scales["1"][NORMS[0]].__setitem__(0, 0.5), "whole numbers of at most"),
        (lambda scales: scales["1"][NORMS[0]].__setitem__(0, 1000), "whole numbers of at most"),
        (lambda scales: scales["1"].update({NORMS[0]: "1"}), "whole numbers of at most"),
        (lambda scales: scales["1"].update({"self_attn": []}), "no such channels in layer 1"),
        (lambda scales: scales.update({"77": {}}), "no such channels in layer 77"),
        (lambda scales: scales.update({"1": []}), "no such channels in layer 1"),
    ],
    ids=["another", "short", "fraction", "huge", "word", "norm", "layer", "list"],
)
def test_damaged_scales_are_named(
    cli: Cli, smoothed: Path, tmp_path: Path, outliers: Path, damage: Callable[[Any], None], told: str
) -> None:
    out = shutil.copytree(smoothed, tmp_path / "out")
    edit_json(out / CHANNEL_SCALES, damage)
    outcome = cli("verify", out, "--source", outliers)
    assert outcome.code in (1, 2) and told in outcome.err and "Traceback" not in outcome.err


def test_missing_scales_are_refused(cli: Cli, smoothed: Path, tmp_path: Path, outliers: Path) -> None:
    """As where transformers has saved the model again, with our record and without this file."""
    out = tmp_path / "out"
    shutil.copytree(smoothed, out)
    (out / CHANNEL_SCALES).unlink()
    drop_hashes(out)
    outcome = cli("verify", out, "--source", outliers)
    assert outcome.code == 2 and f"{CHANNEL_SCALES} is missing" in outcome.err
    assert cli("verify", out).code == 0


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_conversion_keeps_its_scales(
    cli: Cli, tmp_path: Path, outliers: Path, smoothed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search runs once; a second one could find others, with which finished layers would not agree."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "compressed_layers", stop)
        assert cli("convert", outliers, out, *BALANCED).code == 130
    monkeypatch.setattr(smoothing, "best_exponents", stop)
    assert cli("convert", outliers, out, *BALANCED, "--resume").code == 0
    assert (out / SINGLE).read_bytes() == (smoothed / SINGLE).read_bytes()


def test_layers_of_another_procedure_are_not_continued(
    cli: Cli, tmp_path: Path, outliers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a version that did not smooth: half of its layers and half of ours would be no model."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "compressed_layers", stop)
        patched.setattr(journal, "PROCEDURE", 1)
        assert cli("convert", outliers, out, *BALANCED).code == 130
    outcome = cli("convert", outliers, out, *BALANCED, "--resume")
    assert outcome.code == 2 and f"procedure was 1, is {journal.PROCEDURE}" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ("--scheme", "fp8", *CALIBRATION),
        ("--scheme", "bf16", *CALIBRATION),
        ("--scheme", "w4a16", "--group-size", "16", *CALIBRATION),
        ("--method", "magnitude"),
    ],
    ids=["fp8", "bf16", "w4a16", "nothing calibrated"],
)
@pytest.mark.parametrize("flag", ["--smooth", "--no-smooth"])
def test_smoothing_without_effect_is_refused(
    cli: Cli, tmp_path: Path, short_demo: Path, words: tuple[str, ...], flag: str
) -> None:
    outcome = cli("convert", short_demo, tmp_path / "out", flag, *words)
    assert outcome.code == 2 and "smooth has no effect" in outcome.err
