"""The trained demo model and its text, and conversions of it (or of any folder) through the library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.hub.snapshot import open_folder
from slideconvert.models.load import load_tokenizer
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import parse_recipe
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEMO = EXAMPLES / "demo_model"
TEXT = EXAMPLES / "demo_text" / "evaluation.jsonl"

SHORT_LAYERS = 2

KEEP_FIRST = {"match": "model.layers.0.*", "keep": "true"}
DOWN_2_6 = {"match": "*.down_proj", "pattern": "2:6"}
FP8_LATE = {"match": "model.layers.[23].*", "scheme": "fp8"}


def short_demo(folder: Path) -> Path:
    """The demo model with its first SHORT_LAYERS layers alone, for tests to which more would only add time."""
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    kept = tuple(f"model.layers.{layer}." for layer in range(SHORT_LAYERS))
    tensors = load_file(folder / "model.safetensors")
    short = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("model.layers.") or name.startswith(kept)
    }
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": SHORT_LAYERS}))
    return folder


def converted(source: Path, out: Path, **words: Any) -> Path:
    """Convert with the words of a recipe (magnitude, dense layout unless said) into `out`, verified."""
    recipe = parse_recipe({"method": "magnitude", "layout": "dense", **words}, "test")
    convert(make_plan(open_folder(source), recipe), out)
    return out


def both_layouts(source: Path, folder: Path, **words: Any) -> dict[str, Path]:
    """The same conversion twice, in folders named after the layouts."""
    return {layout: converted(source, folder / layout, layout=layout, **words) for layout in ("dense", "slide")}


def text_windows(length: int, count: int) -> Tensor:
    """[count, length] tokens of text that the demo model was not trained on."""
    return token_sequences(load_tokenizer(Checkpoint.open(DEMO)), read_documents(str(TEXT)), length, count)
