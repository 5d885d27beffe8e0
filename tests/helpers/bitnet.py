"""Small BitNet models in every form in which BitNet's own checkpoints come, written without slideconvert's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers import calibrated, pico
from tests.twins import ternary

CONFIG = {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "latent": {},
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "packed-inverse": {"linear_class": "bitlinear", "quantization_mode": "offline"},
}
"""The forms, and what their config.json says of it."""


def latent(layers: int = pico.LAYERS) -> dict[str, Tensor]:
    """All tensors of a BitNet: the pico model with norms before o_proj and down_proj, none of them plain ones."""
    tensors = calibrated.weights(layers=layers)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.attn_sub_norm.weight"] = torch.linspace(0.5, 1.5, pico.HIDDEN).bfloat16()
        tensors[f"{prefix}.mlp.ffn_sub_norm.weight"] = torch.linspace(1.5, 0.5, pico.INNER).bfloat16()
    return tensors


def stored(tensors: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """The tensors as a checkpoint of that form holds them."""
    if not form.startswith("packed"):
        return tensors
    out = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            out[name] = tensor
            continue
        codes, scale = ternary.ternarize(tensor.float().numpy())
        held = torch.tensor([float(scale)])
        out[name] = torch.from_numpy(ternary.pack(codes))
        out[f"{name}_scale"] = held.reciprocal() if form == "packed-inverse" else held
    return out


def write(folder: Path, form: str = "latent", tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A model with its tokenizer, in one of the forms."""
    quantization = {"quant_method": "bitnet", **QUANTIZATION[form]}
    words = {**CONFIG, **({} if form == "latent" else {"quantization_config": quantization}), **config}
    pico.write(folder, stored(latent() if tensors is None else tensors, form), words)
    return calibrated.write_tokenizer(folder)
