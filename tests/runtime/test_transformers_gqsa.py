"""What only weights with scales for groups of columns have in transformers; the rest is in test_transformers.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.models.load import load_model
from tests.helpers import pico
from tests.helpers.serving import (
    edit_config,
    grouped,
    logits,
    our_linears,
    same_bytes,
)
from tests.runtime.test_transformers import load
from tests.runtime.test_transformers_bundle import without_us
from tests.runtime.test_transformers_refusals import UP, layers, refused

# ---- what a model gives


@pytest.mark.parametrize("recipe", ["w4a16", "w4a8 symmetric", "w8a16 in fours"])
def test_layouts_give_the_same_logits(tmp_path: Path, recipe: str) -> None:
    gqs, dense = (load(grouped(tmp_path / layout, recipe, layout)) for layout in ("gqs", "dense"))
    assert torch.equal(logits(gqs), logits(dense))
    assert {linear.spec.layout for linear in our_linears(gqs).values()} == {"gqs"}


def test_activations_of_eight_bits_are_rounded(tmp_path: Path) -> None:
    out = grouped(tmp_path, "w4a8 symmetric")
    rounded = logits(load(out))
    assert not torch.equal(rounded, logits(load_model(Checkpoint.open(out), activations="float")))
    edit_config(out, lambda config: [entry.update(scheme="w4a16") for entry in layers(config).values()])
    assert torch.equal(logits(load(out)), logits(load_model(Checkpoint.open(out), activations="float")))
    assert not torch.equal(logits(load(out)), rounded)


# ---- the backend that config.json asks for


def test_the_reference_backend_serves_both_kinds(tmp_path: Path) -> None:
    out = grouped(tmp_path, "mixed")
    edit_config(out, lambda config: config.update(slidesparse_runtime={"backend": "reference"}))
    model = load(out)
    for kind, count in ((GroupSpec, 8), (SlideSpec, 10)):
        assert [linear.why for linear in our_linears(model, kind).values()] == ["asked for"] * count


def test_a_backend_of_other_linears_means_auto_for_these(tmp_path: Path) -> None:
    """Both families are known where both are there; what is asked for still has to be possible."""
    out = grouped(tmp_path, "mixed", "slide")
    edit_config(out, lambda config: config.update(slidesparse_runtime={"backend": "cusparselt"}))
    refused(out, "q_proj: backend cusparselt cannot run 64x64 int8", 'slidesparse_runtime to {"backend": "auto"}')
    edit_config(out, lambda config: config.update(slidesparse_runtime={"backend": "group_gemm"}))
    refused(out, "backend group_gemm cannot run", "W4A16 g8", "needs a CUDA device")
    only = grouped(tmp_path / "only")
    edit_config(only, lambda config: config.update(slidesparse_runtime={"backend": "cusparselt"}))
    refused(only, "backend 'cusparselt'", "use one of auto, both, group_gemm, reference)")


# ---- by the code that the checkpoint carries

BUNDLED = """
for name in ("gqs", "dense", "mixed"):
    model = load(f"{name}/out")
    kinds = {type(m.spec) for m in model.modules() if type(m).__name__ == "SlideSparseLinear"}
    results[name] = logits(model), sorted(kind.__name__ for kind in kinds)
    assert all(kind.__module__.startswith("transformers_modules.") for kind in kinds)
    model.save_pretrained(f"{name}/again")
"""


def test_it_runs_without_slideconvert(tmp_path: Path) -> None:
    made = {layout: grouped(tmp_path / layout, layout=layout, biases=True) for layout in ("gqs", "dense")}
    made["mixed"] = grouped(tmp_path / "mixed", "mixed", "gqs")
    results = without_us(tmp_path, BUNDLED)
    for name, out in made.items():
        found, kinds = results[name]
        assert torch.equal(found, logits(load_model(Checkpoint.open(out))))
        assert kinds == ["GroupSpec", *(["SlideSpec"] if name == "mixed" else [])]
        before, after = pico.read(out), pico.read(tmp_path / name / "again")
        recorded = json.loads((out / "config.json").read_text())["slidesparse_config"]["layers"]
        own = [tensor for tensor in before if tensor.rpartition(".")[0] in recorded and not tensor.endswith("bias")]
        assert own and before.keys() == after.keys()
        assert not [tensor for tensor in own if not same_bytes(after[tensor], before[tensor])]


# ---- what is refused

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def entry_with(**words: Any) -> Callable[[Config], Any]:
    return lambda config: layers(config)[UP].update(words)


UNPRUNED = {"shape": [88, 64], "scheme": "w4a16", "symmetric": False, "pattern": "2:inf"}
CONFIGS: dict[str, tuple[str, Callable[[Config], Any], tuple[str, ...]]] = {
    "no record": ("gqs", lambda config: config.pop("slidesparse_config"), ("gqs layout", "no slidesparse_config")),
    "another layout": (
        "gqs",
        lambda config: config["slidesparse_config"].update(layout="dense"),
        ("layout 'dense'", "gqs-packed"),
    ),
    "gqs without its format": (
        "dense",
        lambda config: config["slidesparse_config"].update(layout="gqs"),
        ("layout 'gqs'", "pack-quantized"),
    ),
    "another group size": (
        "gqs",
        entry_with(group_size=16, pattern="1x16:50%"),
        (f"{UP}.weight_", "needs", "[352, 8]"),
    ),
    "a group size that does not divide": ("dense", entry_with(group_size=48), ("unreadable", "group_size 48 of 64")),
    "an unheard-of group size": (
        "dense",
        lambda config: layers(config).update({UP: {**UNPRUNED, "group_size": 2}}),
        (UP, "size is 2, known: 4"),
    ),
    "a pattern of other groups": ("gqs", entry_with(pattern="1x16:50%"), ("unreadable", "1x16:50%", "group_size 8")),
    "more groups than there are": ("gqs", entry_with(kept_groups=705), ("unreadable", "kept_groups 705 of 704")),
    "fewer groups than are stored": (
        "gqs",
        entry_with(kept_groups=344),
        (f"{UP}.weight_groups: I16 [352]", "needs I16 [344]"),
    ),
    "fewer groups than are not zero": (
        "dense",
        entry_with(kept_groups=344),
        (UP, "352 groups are not zero, 344 may be"),
    ),
    "another number of bits": ("gqs", entry_with(scheme="w8a16"), (f"{UP}.weight_values: U8 [352, 4]", "[352, 8]")),
    "symmetric": (
        "dense",
        entry_with(symmetric=True),
        (f"{UP}.weight_zero_point: I32", "no place in a dense 88x64 W4"),
    ),
    "a scale per row": ("dense", entry_with(scheme="int8", pattern="2:8"), (f"tensor {UP}.weight is missing",)),
    "a linear the record lacks": (
        "gqs",
        lambda config: layers(config).pop(UP),
        (f"tensor {UP}.weight is missing",),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(tmp_path: Path, case: str) -> None:
    layout, spoil, words = CONFIGS[case]
    out = grouped(tmp_path, layout=layout)
    edit_config(out, spoil)
    refused(out, *words)


def put(name: str, place: tuple[int, ...], value: Any) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.{name}"][place] = value

    return change


TENSORS: dict[str, tuple[str, Callable[[Tensors], Any], tuple[str, ...]]] = {
    "no row index": ("gqs", lambda t: t.pop(f"{UP}.weight_row_index"), (f"{UP}.weight_row_index is missing",)),
    "no zero points": ("dense", lambda t: t.pop(f"{UP}.weight_zero_point"), ("weight_zero_point is missing",)),
    "scales of another dtype": (
        "gqs",
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"].float()}),
        (f"{UP}.weight_scale: F32 [352]", "needs BF16 [352]"),
    ),
    "too few words": (
        "dense",
        lambda t: t.update({f"{UP}.weight_packed": t[f"{UP}.weight_packed"][:, :-1].clone()}),
        (f"{UP}.weight_packed: I32 [88, 7]", "needs I32 [88, 8]"),
    ),
    "a group out of order": ("gqs", put("weight_groups", (0,), 7), (UP, "must ascend within a row")),
    "a group beyond the row": ("gqs", put("weight_groups", (5,), 8), (UP, "a row has 8 groups")),
    "rows that fall": ("gqs", put("weight_row_index", (3,), 99), (UP, "weight_row_index falls")),
    "a scale that is no number": ("dense", put("weight_scale", (2, 3), torch.nan), (UP, "1 that are not finite")),
    "another shape": ("dense", put("weight_shape", (0,), 89), (UP, "weight_shape is [89, 64]")),
    "a codes tensor too many": (
        "gqs",
        lambda t: t.update({f"{UP}.weight": torch.zeros(88, 64)}),
        (f"{UP}.weight: F32 [88, 64]", "no place in a gqs 88x64 W4A16 g8"),
    ),
    "a row index of a kept linear": (
        "gqs",
        lambda t: t.update({"lm_head.weight_row_index": torch.zeros(97, dtype=torch.int32)}),
        ("lm_head.weight_row_index: I32 [97]", "does not name"),
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(tmp_path: Path, case: str) -> None:
    layout, spoil, words = TENSORS[case]
    out = grouped(tmp_path, layout=layout)
    tensors = pico.read(out)
    spoil(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    refused(out, *words)
