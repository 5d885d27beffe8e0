"""A small model with the shapes of a planned one, scaled down, and random weights, to time conversions of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..checkpoint.files import CONFIG, SINGLE
from ..checkpoint.reader import TORCH_DTYPES
from ..models.families import architecture_of
from ..models.meta import meta_checkpoint
from ..texts.named import Documents

LAYERS = 2
"""The time between the ends of its two layers is that of any layer of a larger model."""
STEP = 128
"""Widths stay multiples of it, or of their own largest factor below: groups of weights must divide them."""
FEWEST_WORDS, SHORTEST = 64, 16
"""The smallest vocabulary, and the fewest tokens of a sequence."""
SPREAD = 0.02
"""Standard deviation of the weights."""


def narrowed(config: dict[str, Any], halvings: int) -> dict[str, Any]:
    """The config.json of a model of LAYERS layers whose widths are halved so often, rounded up to what groups divide.

    Heads keep their size. The vocabulary is smaller by as much as layers and widths together, so that the head keeps
    its share of the work.
    """
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    values = int(config.get("num_key_value_heads") or heads)
    fewer = max(1, values >> halvings)
    # transformers demands of some architectures that the number of heads divides the width.
    even = int(config["hidden_size"]) % heads == 0
    hidden = _narrowed(int(config["hidden_size"]), halvings, fewer * (heads // values) if even else 1)
    words = int(config["vocab_size"]) * hidden * LAYERS // (int(config["hidden_size"]) * layers)
    # What is given for each layer, such as the kind of its attention.
    by_layer = {name: value[:LAYERS] for name, value in config.items() if _is_list(value, layers)}
    tokens = {name: 0 for name, value in config.items() if name.endswith("_token_id") and value is not None}
    return {
        **config,
        **by_layer,
        **tokens,
        "num_hidden_layers": LAYERS,
        "hidden_size": hidden,
        "intermediate_size": _narrowed(int(config["intermediate_size"]), halvings),
        "num_attention_heads": fewer * (heads // values),
        "num_key_value_heads": fewer,
        "head_dim": architecture_of(config).head_size(config),
        "vocab_size": max(FEWEST_WORDS, words),
    }


def write_miniature(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of this config.json with random weights, and a tokenizer of numbers. InputError for a model whose
    tensors config.json does not describe."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype)
        return torch.randn(shape, generator=generator).mul_(SPREAD).to(dtype)

    specs = [placed.spec for placed in meta_checkpoint(folder).tensors.values()]
    tensors = {spec.name: drawn(spec.shape, TORCH_DTYPES[spec.dtype]) for spec in specs}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    vocabulary = {str(number): number for number in range(config["vocab_size"])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def numbers(words: int, count: int) -> Documents:
    """A text of so many random words of the tokenizer."""
    drawn = torch.randint(words, (count,), generator=torch.Generator().manual_seed(0))
    return Documents([" ".join(map(str, drawn.tolist()))], name="random numbers")


def _narrowed(width: int, halvings: int, divided: int = 1) -> int:
    """divided: a number that divides the result as well."""
    step = math.lcm(math.gcd(width, min(STEP, 1 << max(4, (width // 4).bit_length() - 1))), divided)
    return -(-(width >> halvings) // step) * step


def _is_list(value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers
