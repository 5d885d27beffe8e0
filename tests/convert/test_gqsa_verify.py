"""Faults that verify finds in weights of the GQSA format alone; test_verify.py has those of all formats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.convert.test_verify import edit_tensors, faulty, flip_byte
from tests.helpers import bitnet
from tests.helpers.serving import edit_config
from tests.helpers.weight_faults import Q, Tensors, one_code

pytest_plugins = ["tests.helpers.verify_fixtures"]

DOWN = "model.layers.0.mlp.down_proj"


def exchanged(first: str, second: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(f"{first}.")]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return change


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Q, "model.layers.0.self_attn.q_proj"),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"),
        ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"),
        ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"),
        (DOWN, "model.layers.1.mlp.down_proj"),
    ],
)
def test_exchanged_solved_linears_are_found(
    cli: Cli, folders: dict[str, Path], damaged: Callable[[str], Path], first: str, second: str
) -> None:
    """Each sound in itself; the cosine between it and what it should be gives it away."""
    out = damaged("solved")
    edit_tensors(out, exchanged(first, second))
    assert cli("verify", out, "-q").code == 0
    for name in (first, second):
        faulty(
            cli, out, name, "the cosine between it and the source is", "not the same linear", source=folders["lively"]
        )


def test_a_linear_with_the_other_sign_is_found(
    cli: Cli, folders: dict[str, Path], damaged: Callable[[str], Path]
) -> None:
    def mirrored(tensors: Tensors) -> None:
        """Codes and zero points from the other end of the range."""
        for part in ("weight_values", "weight_zero_point"):
            tensors[f"{Q}.{part}"].bitwise_xor_(0xFF)

    out = damaged("solved")
    edit_tensors(out, mirrored)
    faulty(cli, out, Q, "the cosine between it and the source is -0.", source=folders["lively"])


def test_a_damaged_byte_and_a_changed_record(cli: Cli, damaged: Callable[[str], Path], tmp_path: Path) -> None:
    out = damaged("solved")
    edit_config(out, lambda config: config["slidesparse_config"]["layers"][Q].update(pattern="1x8:40%"))
    faulty(cli, out, Q, "1x8:40%")
    edit_config(out, lambda config: config["slidesparse_config"]["layers"][Q].update(pattern="1x8:50%:1.01"))
    faulty(cli, out, Q, "1x8:50%:1.01 allows 5 in one row")
    edit_config(out, lambda config: config["slidesparse_config"]["layers"][Q].update(pattern="1x8:50%", symmetric=True))
    faulty(cli, out, "quantization_config does not agree")
    shutil.rmtree(out)
    out = damaged("solved")
    flip_byte(out / "model.safetensors")
    faulty(cli, out, "model.safetensors", "sha256")


@pytest.mark.parametrize("words", ["--pattern 2_inf --method rtn", "--pattern 2_8 --method magnitude"])
def test_ternary_weights_may_be_rounded_to_groups(cli: Cli, tmp_path: Path, words: str) -> None:
    """With full codes: groups without zero in the middle round what was ternary, by half a step at most."""
    source, out = bitnet.write(tmp_path / "bitnet"), tmp_path / "out"
    chosen = ("--codes", "full", "--scheme", "w4a16", "--group-size", 8, "-q")
    assert cli("convert", source, out, *chosen, *words.split()).code == 0
    assert cli("verify", out, "--source", source).code == 0
    edit_tensors(out, one_code("weight_packed"))
    faulty(cli, out, Q, "more than rounding", source=source)
