"""verify finds faults of weights in the GQSA format, in both layouts, with and without the source.

The recorded hashes match the damaged files, so that only the weights reveal the damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert.convert.pipeline import convert
from tests.conftest import Cli
from tests.convert.test_verify import Tensors, edit_tensors, faulty, flip_byte
from tests.helpers import bitnet, pico
from tests.helpers.calibrated import plan_for, write_model, write_text
from tests.helpers.serving import edit_config

Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
WORDS: dict[str, Any] = {"pattern": None, "group_size": "8", "scheme": "w4a16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model; `solved`, what gqsa makes of it; `sparse`, it in bfloat16 without half of its groups; `gqs` and `dense`,
    that rounded to nearest, whose weights can be told from the source one by one; `whole`, the model rounded."""
    folder = tmp_path_factory.mktemp("verify")
    model, text = write_model(folder / "model", num_hidden_layers=2), write_text(folder / "text.jsonl")
    words = WORDS | {"sparsity": "0.5", "layout": "gqs"}
    convert(plan_for(model, text, method="gqsa", **words), folder / "solved")
    convert(
        plan_for(model, text, method="saliency", **words | {"scheme": "bf16", "layout": "dense"}), folder / "sparse"
    )
    for layout in ("gqs", "dense"):
        convert(plan_for(folder / "sparse", method="rtn", **WORDS, layout=layout), folder / layout)
    convert(plan_for(model, method="rtn", **WORDS | {"pattern": "2:inf"}), folder / "whole")
    return {name: folder / name for name in ("model", "solved", "sparse", "gqs", "dense", "whole")}


@pytest.fixture
def damaged(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the folders, to damage."""
    return lambda name: shutil.copytree(folders[name], tmp_path / "out")


def test_sound_ones(cli: Cli, folders: dict[str, Path]) -> None:
    for name, source in (("solved", "model"), ("gqs", "sparse"), ("dense", "sparse"), ("whole", "model")):
        outcome = cli("verify", folders[name], "--source", folders[source])
        assert outcome.code == 0 and "sound and agree with" in outcome.out, name


def swapped(part: str, *places: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensor = tensors[f"{Q}.{part}"]
        tensor[list(places)] = tensor[list(places[::-1])].clone()

    return change


def emptied(tensors: Tensors) -> None:
    """A group that is listed with all its codes at the zero point, though its scale is told."""
    zero = int(tensors[f"{Q}.weight_zero_point"][0]) & 15
    tensors[f"{Q}.weight_values"][0] = zero << 4 | zero


def added(part: str, place: int, step: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[f"{Q}.{part}"].flatten()[place : place + 1].add_(step) and None


GQS: dict[str, tuple[Callable[[Tensors], object], tuple[str, ...]]] = {
    "rows that fall": (added("weight_row_index", 5, 500), (Q, "weight_row_index falls")),
    "rows that begin elsewhere": (added("weight_row_index", 0, 1), (Q, "weight_row_index goes from 1 to 256")),
    "rows that end elsewhere": (added("weight_row_index", -2 + 65, 1000), (Q, "weight_row_index")),
    "a last row too long": (lambda t: t[f"{Q}.weight_row_index"][-1:].add_(1), (Q, "from 0 to 257, not from 0 to 256")),
    "a group beyond the row": (
        lambda t: t[f"{Q}.weight_groups"][:1].fill_(8),
        (Q, "weight_groups[0] is 8", "8 groups"),
    ),
    "a group before the row": (lambda t: t[f"{Q}.weight_groups"][:1].fill_(-1), (Q, "weight_groups[0] is -1")),
    "a group twice": (
        lambda t: t[f"{Q}.weight_groups"].copy_(t[f"{Q}.weight_groups"].sort().values),
        (Q, "must ascend within a row"),
    ),
    "groups out of order": (swapped("weight_groups", 0, 1), (Q, "must ascend within a row")),
    "a negative scale": (lambda t: t[f"{Q}.weight_scale"][3:4].neg_(), (Q, "weight_scale is not positive")),
    "a scale of zero": (lambda t: t[f"{Q}.weight_scale"][3:4].zero_(), (Q, "weight_scale is not positive")),
    "a scale that is no number": (lambda t: t[f"{Q}.weight_scale"][3:4].fill_(float("nan")), (Q, "not finite")),
    "an empty group with a scale": (emptied, (Q, "weight_", "is not the canonical packing")),
    "a tensor that is gone": (lambda t: t.pop(f"{Q}.weight_groups"), (Q, "weight_groups", "missing")),
    "groups of another type": (
        lambda t: t.update({f"{Q}.weight_groups": t[f"{Q}.weight_groups"].int()}),
        (Q, "weight_groups", "I32"),
    ),
    "zero points of another shape": (
        lambda t: t.update({f"{Q}.weight_zero_point": t[f"{Q}.weight_zero_point"][:-1].contiguous()}),
        (Q, "weight_zero_point", "[127]"),
    ),
}


@pytest.mark.parametrize("fault", GQS)
def test_faults_of_groups(cli: Cli, damaged: Callable[[str], Path], fault: str) -> None:
    spoil, words = GQS[fault]
    out = damaged("solved")
    edit_tensors(out, spoil)
    faulty(cli, out, *words)


def woken(tensors: Tensors) -> None:
    """Codes in a group that was pruned."""
    packed, zero = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_zero_point"]
    empty = packed == packed.new_tensor(0x88888888 - 2**32)  # eight codes at the zero point in the middle
    row, group = (int(index) for index in empty.nonzero()[0])
    packed[row, group] ^= 1
    assert int(zero[row // 8, group]) >> (row % 8 * 4) & 15 == 8


DENSE: dict[str, tuple[Callable[[Tensors], object], tuple[str, ...]]] = {
    "a group too many": (woken, (Q, "257 groups of 8 are non-zero, 1x8:50% allows 256")),
    "another shape": (
        lambda t: t[f"{Q}.weight_shape"].copy_(torch.tensor([32, 128])),
        (Q, "weight_shape is [32, 128]"),
    ),
    "a negative scale": (lambda t: t[f"{Q}.weight_scale"][3:4].neg_(), (Q, "weight_scale is not positive")),
    "a scale that is no number": (lambda t: t[f"{Q}.weight_scale"][3:4].fill_(float("inf")), (Q, "not finite")),
    "a scale of nothing": (
        lambda t: t[f"{Q}.weight_scale"].masked_fill_(t[f"{Q}.weight_packed"] == 0x88888888 - 2**32, 2),
        (Q, "weight_scale is not the canonical packing"),
    ),
    "a shape that is gone": (lambda t: t.pop(f"{Q}.weight_shape"), (Q, "weight_shape", "missing")),
}


@pytest.mark.parametrize("fault", DENSE)
def test_faults_of_packed_weights(cli: Cli, damaged: Callable[[str], Path], fault: str) -> None:
    spoil, words = DENSE[fault]
    out = damaged("dense")
    edit_tensors(out, spoil)
    faulty(cli, out, *words)


def one_code(part: str) -> Callable[[Tensors], None]:
    """The first code two steps off, in its range."""

    def change(tensors: Tensors) -> None:
        tensor = tensors[f"{Q}.{part}"].flatten()
        tensor[:1] ^= 2

    return change


def lost_weight(tensors: Tensors) -> None:
    """One weight of a group that stays at the zero point, far from where it was."""
    packed, zero = tensors[f"{Q}.weight_packed"], tensors[f"{Q}.weight_zero_point"]
    for row in range(8):
        for group in range(8):
            point, word = int(zero[0, group]) >> (4 * row) & 15, int(packed[row, group]) & 0xFFFFFFFF
            far = [lane for lane in range(8) if abs((word >> (4 * lane) & 15) - point) > 1]
            if len(far) > 1:
                word = word & ~(15 << 4 * far[0]) | point << 4 * far[0]
                packed[row, group] = word - 2**32 if word >= 2**31 else word
                return


SOURCE: dict[str, tuple[str, Callable[[Tensors], object], tuple[str, ...]]] = {
    "a code, in groups": ("gqs", one_code("weight_values"), (Q, "more than rounding")),
    "a code, packed": ("dense", one_code("weight_packed"), (Q, "more than rounding")),
    "a code, nothing pruned": ("whole", one_code("weight_packed"), (Q, "more than rounding")),
    "groups that changed places": ("gqs", swapped("weight_values", 0, 9), (Q, "more than rounding")),
    "a scale, in groups": ("gqs", lambda t: t[f"{Q}.weight_scale"][:1].mul_(1.5), (Q, "more than rounding")),
    "a scale, packed": (
        "dense",
        lambda t: t[f"{Q}.weight_scale"].masked_fill_(t[f"{Q}.weight_packed"] != 0x88888888 - 2**32, 1.0),
        (Q, "more than rounding"),
    ),
    "a zero point": ("gqs", lambda t: t[f"{Q}.weight_zero_point"][:1].bitwise_xor_(1), (Q, "more than rounding")),
    "a row that took a group of the next": ("gqs", added("weight_row_index", 1, -1), (Q,)),
    "a weight that is gone": ("dense", lost_weight, (Q, "lost some of its weights, 1x8:50% prunes whole groups")),
}


@pytest.mark.parametrize("fault", SOURCE)
def test_faults_that_only_the_source_shows(
    cli: Cli, folders: dict[str, Path], damaged: Callable[[str], Path], fault: str
) -> None:
    name, spoil, words = SOURCE[fault]
    out = damaged(name)
    edit_tensors(out, spoil)
    if fault != "a row that took a group of the next":  # which may no longer ascend
        assert cli("verify", out, "-q").code == 0
    faulty(cli, out, *words, source=folders["model" if name == "whole" else "sparse"])


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
            cli, out, name, "the cosine between it and the source is", "not the same linear", source=folders["model"]
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
    faulty(cli, out, Q, "the cosine between it and the source is -0.", source=folders["model"])


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


def test_a_wrong_source_is_found(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(9)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in pico.read(folders["model"]).items()
    }
    other = pico.write(tmp_path / "other", tensors, {"num_hidden_layers": 2})
    for name in ("solved", "gqs", "dense"):
        faulty(cli, folders[name], Q, "the cosine between it and the source is", source=other)
    faulty(cli, folders["whole"], Q, "more than rounding", source=other)


@pytest.mark.parametrize("words", ["--pattern 2_inf --method rtn", "--pattern 2_8 --method magnitude"])
def test_ternary_weights_may_be_rounded_to_groups(cli: Cli, tmp_path: Path, words: str) -> None:
    """With full codes: groups without zero in the middle round what was ternary, by half a step at most."""
    source, out = bitnet.write(tmp_path / "bitnet"), tmp_path / "out"
    chosen = ("--codes", "full", "--scheme", "w4a16", "--group-size", 8, "-q")
    assert cli("convert", source, out, *chosen, *words.split()).code == 0
    assert cli("verify", out, "--source", source).code == 0
    edit_tensors(out, one_code("weight_packed"))
    faulty(cli, out, Q, "more than rounding", source=source)
