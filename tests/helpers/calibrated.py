"""What tests of calibration share: models, text and a tokenizer for them, and short ways to plan and convert."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from slideconvert.core.quantize import QuantizedWeight, Weight
from slideconvert.hub.source import resolve
from slideconvert.plan.plan import Plan, make_plan
from slideconvert.plan.presets import PRESETS, Preset
from slideconvert.plan.recipe import parse_recipe
from slideconvert.prune import METHODS
from tests.helpers import pico

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
DEMO_TEXT = DEMO.parent / "demo_text"

WORDS = pico.VOCABULARY - 2
SAMPLES, LENGTH = 9, 24
FLAGS = ("--samples", SAMPLES, "--length", LENGTH)


def calibrated_by(text: Path, *words: object) -> tuple[object, ...]:
    """The words of a command, with those of calibration by `text` unless their --method needs none."""
    method = words[words.index("--method") + 1] if "--method" in words else None
    data_free = method is not None and not METHODS[str(method)].calibrated and "--preset" not in words
    return words if data_free else (*words, "--calibration", text, *FLAGS)


STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears of a layer that read the same input, in the order in which data meets them."""

SLIDING = {"sliding_window": 6}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": pico.HIDDEN // pico.HEADS},
    "mistral, sliding": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **SLIDING},
    "qwen2, two layers sliding": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": True,
        "max_window_layers": 1,
        **SLIDING,
    },
}


def write_tokenizer(folder: Path, words: int = WORDS) -> Path:
    """A tokenizer of the words w0, w1 … with the numbers 2, 3 …; begin is 0, end is 1."""
    vocabulary = {"<s>": 0, "</s>": 1} | {f"w{number}": number + 2 for number in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folder


def write_text(path: Path, documents: int = 30, words: int = WORDS, seed: int = 0) -> Path:
    """Documents of 30 to 90 words, each near the one before it."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for _ in range(documents):
        length = int(torch.randint(30, 90, (), generator=generator))
        walk = torch.randint(-8, 9, (length,), generator=generator).cumsum(0).remainder(words)
        lines.append(json.dumps({"text": " ".join(f"w{number}" for number in walk.tolist())}))
    path.write_text("\n".join(lines) + "\n")
    return path


def weights(kind: str = "llama", layers: int = pico.LAYERS) -> dict[str, Tensor]:
    """The pico model three times as lively: what a layer adds is no small part of what goes through it."""
    tensors = pico.weights(layers=layers, bias=kind.startswith("qwen2"))
    for name, tensor in tensors.items():
        if "_proj" in name:
            tensor *= 3
    if kind == "qwen3":
        for layer in range(layers):
            for part in ("q", "k"):
                norm = torch.linspace(0.5, 1.5, pico.HIDDEN // pico.HEADS).bfloat16()
                tensors[f"model.layers.{layer}.self_attn.{part}_norm.weight"] = norm
    return tensors


def write_model(folder: Path, kind: str = "llama", **config: Any) -> Path:
    """A model of one of KINDS, with its tokenizer."""
    layers = config.get("num_hidden_layers", pico.LAYERS)
    return write_tokenizer(pico.write(folder, weights(kind, layers), {**KINDS[kind], **config}))


def plan_for(
    source: Path, text: Path | None = None, samples: int = SAMPLES, length: int = LENGTH, **words: Any
) -> Plan:
    """The plan of a recipe with these words; int8, 2:8, dense unless said otherwise; None leaves a word out."""
    calibration = {"samples": str(samples), "length": str(length), **({"text": str(text)} if text else {})}
    common = {"scheme": "int8", "pattern": "2:8", "layout": "dense", "calibration": calibration}
    said = {word: value for word, value in {**common, **words}.items() if value is not None}
    return make_plan(resolve(str(source)), parse_recipe(said, "test"))


def quality(block_epochs: int, end_epochs: int, **words: Any) -> Preset:
    """Preset quality with so many epochs of training on the calibration text alone, once, in small batches, and other
    words of it."""
    whole = PRESETS["quality"]
    recovery = replace(whole.recovery, block_epochs=block_epochs, end_epochs=end_epochs, sequences=0, retries=0)
    return replace(whole, recovery=replace(recovery, end_batch=recovery.block_batch), **words)


def brief_presets() -> dict[str, Preset]:
    """Presets that train so little that a resumed run can be counted: quality with two epochs of each training, and
    both without a second run where the first improves nothing."""
    whole = PRESETS["balanced"]
    return {"quality": quality(2, 2), "balanced": replace(whole, recovery=replace(whole.recovery, retries=0))}


def output_error(inputs: Tensor, before: Tensor, after: Tensor) -> float:
    """||X after - X before|| / ||X before|| of a linear's output, for inputs X [..., K] and weights [N, K], float64."""
    inputs, before, after = inputs.double(), before.double(), after.double()
    return float((inputs @ (after - before).T).norm() / (inputs @ before.T).norm())


def numbers(weight: Weight) -> Tensor:
    """What a stored weight stands for, float32."""
    return weight.codes.float() * weight.scale.float() if isinstance(weight, QuantizedWeight) else weight.float()
