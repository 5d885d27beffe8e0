"""Linears whose inputs are zero for every token, or so small or large that squares leave the range of float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_tokenizer

LAYER = "model.layers.1."
UP, DOWN, NORM = (f"{LAYER}{name}.weight" for name in ("mlp.up_proj", "mlp.down_proj", "input_layernorm"))
QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")
DEAD = {"norm": (NORM, QKV), "values": (f"{LAYER}self_attn.v_proj.weight", ("self_attn.o_proj",))}
DEAD["up"] = (UP, ("mlp.down_proj",))
"""A tensor of zeros, and the linears whose inputs are zero then."""
UNTRAINED = ("--block-epochs", "0", "--end-epochs", "0")
SPARSE = ("--sparsity", "0.5", "--group-size", "8", "--scheme", "w4a16", *UNTRAINED)
METHODS: dict[str, tuple[object, ...]] = {
    **{method: ("--method", method) for method in ("obs", "hessian", "alps", "wanda")},
    "quality": ("--preset", "quality", "--end-epochs", "0"),
    "gqsa": ("--method", "gqsa", *SPARSE),
    "saliency": ("--method", "saliency", *SPARSE),
}


def model(folder: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda _: None) -> Path:
    """A pico model in float32 whose tensors `change` has changed."""
    tensors = {name: tensor.float() for name, tensor in pico.weights().items()}
    change(tensors)
    return write_tokenizer(pico.write(folder, tensors, {"dtype": "float32"}))


def reported(out: Path) -> dict[str, dict[str, Any]]:
    """What the report says of each linear."""
    rows: list[dict[str, Any]] = json.loads((out / "report.json").read_text())["layers"]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize(
    ("case", "method"), [*(("norm", method) for method in METHODS), ("values", "obs"), ("up", "obs"), ("up", "quality")]
)
def test_linears_without_inputs_keep_their_largest_weights(
    cli: Cli, text: Path, tmp_path: Path, case: str, method: str
) -> None:
    """Rounded to nearest, with a note: the bytes that magnitude gives without any text. The output is published."""
    zeros, blind = DEAD[case]
    source, out, plain = model(tmp_path / "source", lambda held: held[zeros].zero_()), tmp_path / "out", tmp_path / "m"
    words = METHODS[method]
    assert cli("convert", source, out, *words, "--calibration", text, *FLAGS).code == 0
    held = pico.read(out)
    for linear in blind:
        assert "inputs are zero" in " ".join(reported(out)[LAYER + linear]["notes"])
        assert any(bool(held[name].any()) for name in held if name.startswith(f"{LAYER}{linear}.weight"))
    if method not in ("gqsa", "saliency"):  # magnitude has no groups
        assert cli("convert", source, plain, "--method", "magnitude").code == 0
        expected = pico.read(plain)
        names = [name for name in held if name.startswith(tuple(f"{LAYER}{linear}." for linear in blind))]
        assert names and all(torch.equal(held[name], expected[name]) for name in names)


def rescaled(power: int) -> Callable[[dict[str, torch.Tensor]], None]:
    """The same function of the MLP, with inputs of down_proj times 2**power; largest weights begin in 0.5 … 1,
    as they are scaled for the solvers."""

    def change(held: dict[str, torch.Tensor]) -> None:
        for name, factor in ((UP, 2.0**power), (DOWN, 2.0**-power)):
            held[name] *= 4
            assert 0.5 <= held[name].abs().max() < 1
            held[name] *= factor

    return change


@pytest.mark.parametrize(
    ("method", "power"),
    [*((method, -70) for method in METHODS if method != "quality"), ("obs", -77), ("obs", -63), ("obs", 63)],
)
def test_results_do_not_depend_on_the_size_of_inputs(
    cli: Cli, text: Path, tmp_path: Path, method: str, power: int
) -> None:
    """Powers of two move no rounding: the same codes and errors, and scales times the power."""
    outs = {}
    for name, change in (("plain", rescaled(0)), ("odd", rescaled(power))):
        source, outs[name] = model(tmp_path / name, change), tmp_path / f"{name}-out"
        done = cli("convert", source, outs[name], *METHODS[method], "--calibration", text, *FLAGS)
        assert done.code == 0, done.err
    plain, odd = pico.read(outs["plain"]), pico.read(outs["odd"])
    for name, tensor in plain.items():
        linear, _, part = name.rpartition(".")
        factor = {UP: 2.0**power, DOWN: 2.0**-power}.get(f"{linear}.weight", 1.0) if part == "weight_scale" else 1.0
        assert torch.equal(odd[name], tensor * factor if factor != 1 else tensor), name
    before, after = reported(outs["plain"]), reported(outs["odd"])
    for name in before:
        assert [after[name][part] for part in ("error", "output_error", "notes")] == [
            before[name][part] for part in ("error", "output_error", "notes")
        ]


def with_outlier(held: dict[str, torch.Tensor]) -> None:
    """The same function, with one input channel of q, k and v ten thousand times as large."""
    held[NORM][5] *= 1e4
    for linear in QKV:
        held[f"{LAYER}{linear}.weight"][:, 5] *= 1e-4


def test_inputs_that_8_bits_cannot_hold_are_told(cli: Cli, text: Path, tmp_path: Path) -> None:
    """With the linears and the ways out, smoothing first; which is told no more once one is taken."""
    words = ("--calibration", text, *FLAGS, "--preset", "fast")
    keep = tmp_path / "keep.yaml"
    keep.write_text("rules: [{match: 'model.layers.1.self_attn.[qkv]_proj', keep: true}]")
    plain, odd = model(tmp_path / "plain"), model(tmp_path / "odd", with_outlier)
    names = [LAYER + linear for linear in QKV]
    bare = ("--no-smooth",)
    cases = ((plain, bare, []), (odd, bare, names), (odd, (*bare, "--recipe", keep), []), (odd, (), []))
    for source, more, expected in cases:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        done = cli("convert", source, out, *words, *more)
        said = " ".join(done.out.split())
        assert done.code == 0 and (f"note {', '.join(names)}: quantizing its inputs" in said) == bool(expected), done
        assert "keep: true" in said or not expected
        errors = {name: row["activation_error"] for name, row in reported(out).items()}
        assert [name for name, error in errors.items() if error is not None and error > 0.1] == expected
        assert all((error is None) == ("--recipe" in more and name in names) for name, error in errors.items())
    floats = tmp_path / "floats"
    assert cli("convert", odd, floats, *words, "--scheme", "bf16").code == 0
    assert {row["activation_error"] for row in reported(floats).values()} == {None}


TRAINED = {
    "half": ("--pattern", "2:4"),
    "groups": ("--method", "gqsa", *SPARSE),
    "half of 4 bits": ("--scheme", "w4a16", "--group-size", "8", "--pattern", "2:4"),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_two_sequences_of_two_tokens_are_enough_to_train(cli: Cli, text: Path, tmp_path: Path, kind: str) -> None:
    """By block and end to end, one sequence held out of each; less is refused."""
    words = ("--preset", "quality", "--block-epochs", "1", "--end-epochs", "1", "--calibration", text, "--samples", "2")
    source, out = model(tmp_path / "source"), tmp_path / "out"
    refused = cli("convert", source, out, *TRAINED[kind], *words, "--length", "1")
    assert refused.code == 2 and "length is 1, at least 2 is needed" in refused.err and not out.exists()
    done = cli("convert", source, out, *TRAINED[kind], *words, "--length", "2")
    assert done.code == 0 and cli("verify", out, "--source", source).code == 0, done.err
    assert len(json.loads((out / "report.json").read_text())["training"]) == pico.LAYERS + 1
