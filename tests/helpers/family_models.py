"""A tiny random model of every registered family, built and written by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.helpers.calibrated import WORDS, write_tokenizer

SHAPES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": WORDS + 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ONE_SLIDES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
CASES: dict[str, dict[str, Any]] = {
    "bitnet": {},
    "cohere2": {**ONE_SLIDES, "logit_scale": 0.25},
    "gemma2": {**ONE_SLIDES, "head_dim": 12, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        **ONE_SLIDES,
        "head_dim": 12,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
        },
    },
    "glm4": {"head_dim": 8, "attention_bias": True},
    "granite": {
        "embedding_multiplier": 6.0,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "llama": {},
    "mistral": {"sliding_window": 6},
    "olmo2": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "smollm3": {"no_rope_layers": [1, 0]},
}
"""What makes each family what it is, in config.json: everything that a forward pass could lose is switched on."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **config: Any) -> Any:
    """The model with random weights, norms and biases, in bfloat16. BitNet's linears have two values of one size: they
    are what training with ternary weights makes of them, so that transformers runs them as slideconvert does."""
    words = transformers.AutoConfig.for_model(name, **{**SHAPES, **CASES[name], **config})
    model = transformers.AutoModelForCausalLM.from_config(words).bfloat16()
    with torch.no_grad():
        for seed, (parameter, tensor) in enumerate(sorted(model.named_parameters())):
            values = random(*tensor.shape, seed=seed)
            if name == "bitnet" and parameter.endswith("_proj.weight"):
                values = values.sign()
            tensor.copy_(1 + values / 4 if "norm" in parameter else values / 4)
    return model.eval()


def write(folder: Path, name: str) -> Path:
    """The model as a checkpoint with a tokenizer. tie_word_embeddings is left out of config.json, as families do whose
    models are all alike."""
    build(name).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config))
    return write_tokenizer(folder)
