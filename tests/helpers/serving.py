"""Small SlideSparse checkpoints for tests of the loaders: every scheme, layout and mixture, in pico size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slideconvert.formats.record import sealed
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.spec import LinearSpec
from slideconvert.runtime.slidesparse_record import saved_again
from tests.helpers import pico
from tests.helpers.demo import DOWN_2_6, KEEP_FIRST, converted

FP8_LAST = {"match": "model.layers.2.*", "scheme": "fp8"}
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"scheme": "int8", "pattern": "2:8"},
    "fp8": {"scheme": "fp8", "pattern": "2:6"},
    "2:inf": {"scheme": "int8", "pattern": "2:inf"},
    "mixed": {"scheme": "int8", "pattern": "2:8", "rules": [KEEP_FIRST, DOWN_2_6, FP8_LAST]},
}
LAYOUTS = ("slide", "dense")
HALF: dict[str, Any] = {"scheme": "w4a16", "group_size": "8", "pattern": "1x8:50%", "method": "rtn"}
GROUPED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "w4a16": (HALF, ("gqs", "dense")),
    "w4a8 symmetric": ({**HALF, "scheme": "w4a8", "symmetric": "true"}, ("gqs", "dense")),
    "w8a16 in fours": ({**HALF, "scheme": "w8a16", "group_size": "4", "pattern": "1x4:40%"}, ("gqs", "dense")),
    "w4a16 2:8": ({"scheme": "w4a16", "group_size": "8", "pattern": "2:8"}, ("dense",)),
    "mixed": (
        {
            "scheme": "int8",
            "pattern": "2:8",
            "rules": [
                {"match": "model.layers.0.mlp.*", "keep": "true"},
                {"match": "model.layers.1.*", **HALF},
                {"match": "*.down_proj", "scheme": "w4a8", "group_size": "4", "pattern": "2:8"},
            ],
        },
        ("slide", "gqs", "dense"),
    ),
}
"""Recipes with scales for groups of columns, and the layouts in which they make a difference."""
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
TOKENS = torch.randint(2, pico.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def checkpoint(folder: Path, recipe: str = "int8", layout: str = "slide", *, biases: bool = False) -> Path:
    """A conversion of the pico model by one of RECIPES into `folder`/out; with biases, of a Qwen2 of that size."""
    source = pico.write(folder / "source", pico.weights(bias=biases), QWEN2 if biases else None)
    return converted(source, folder / "out", layout=layout, **RECIPES[recipe])


def grouped(folder: Path, recipe: str = "w4a16", layout: str = "gqs", *, biases: bool = False) -> Path:
    """A conversion by one of GROUPED into `folder`/out, of the pico model with half of all groups zero."""
    tensors = pico.weights(bias=biases)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            groups = tensor.view(-1, 8)
            groups[groups.float().norm(dim=1).argsort()[: len(groups) // 2]] = 0
    source = pico.write(folder / "source", tensors, QWEN2 if biases else None)
    return converted(source, folder / "out", layout=layout, **GROUPED[recipe][0])


@dataclass(frozen=True)
class Format:
    """A storage format, for tests of what all formats have in common.

    make: as `checkpoint` and `grouped`. layouts: by recipe. biased: the recipe for tests with biases.
    """

    make: Callable[..., Path]
    own_layout: str
    layouts: dict[str, tuple[str, ...]]
    biased: str
    scale_dtype: torch.dtype


FORMATS = {
    "2:L": Format(checkpoint, "slide", dict.fromkeys(RECIPES, LAYOUTS), "mixed", torch.float32),
    "GQSA": Format(grouped, "gqs", {name: made for name, (_, made) in GROUPED.items()}, "w4a16", torch.bfloat16),
}
EVERY_LAYOUT = [(name, layout) for name, form in FORMATS.items() for layout in (form.own_layout, "dense")]
EVERY_CASE = [
    (name, recipe, layout)
    for name, form in FORMATS.items()
    for recipe, layouts in form.layouts.items()
    for layout in layouts
]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def our_linears(model: Any, kind: type[LinearSpec] = LinearSpec) -> dict[str, SlideSparseLinear]:
    """The quantized linears by name; only those of one kind of spec, if it is given."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, SlideSparseLinear)}
    return {name: linear for name, linear in linears.items() if isinstance(linear.spec, kind)}


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json and make its recorded hash agree, so that only what it says can give it away."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    hashed = isinstance(record := config.get("slidesparse_config"), dict) and "sha256" in record
    (folder / "config.json").write_text(json.dumps(sealed(config) if hashed else config))


def drop_hashes(folder: Path) -> None:
    """Make config.json what transformers writes when it saves the model again."""

    def change(config: dict[str, Any]) -> None:
        config["slidesparse_config"] = saved_again(config["slidesparse_config"], "transformers")
        config.pop("auto_map")

    edit_config(folder, change)


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    """Same dtype, shape and bits."""
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
    )
