"""Small SlideSparse checkpoints for tests of the loaders: every scheme, layout and mixture, in pico size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slideconvert.kernels.linear import SlideLinear
from tests import pico
from tests.demo import DOWN_2_6, KEEP_FIRST, converted

FP8_LAST = {"match": "model.layers.2.*", "scheme": "fp8"}
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"scheme": "int8", "pattern": "2:8"},
    "fp8": {"scheme": "fp8", "pattern": "2:6"},
    "2:inf": {"scheme": "int8", "pattern": "2:inf"},
    "mixed": {"scheme": "int8", "pattern": "2:8", "rules": [KEEP_FIRST, DOWN_2_6, FP8_LAST]},
}
LAYOUTS = ("slide", "dense")
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
TOKENS = torch.randint(2, pico.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def checkpoint(folder: Path, recipe: str = "int8", layout: str = "slide", *, biases: bool = False) -> Path:
    """A conversion of the pico model by one of RECIPES into `folder`/out; with biases, of a Qwen2 of that size."""
    source = pico.write(folder / "source", pico.weights(bias=biases), QWEN2 if biases else None)
    return converted(source, folder / "out", layout=layout, **RECIPES[recipe])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def slide_linears(model: Any) -> dict[str, SlideLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SlideLinear)}


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def same_bytes(ours: Tensor, theirs: Tensor) -> bool:
    """Same dtype, shape and bits."""
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
    )
