"""Checkpoints with the shapes of real models and random weights, to convert and serve without a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...models.shapes import SHAPES

NORMS = ("input_layernorm", "post_attention_layernorm")
FIRST = "model.layers.0."
GROUP = 16
"""Weights of a group of those that `halve` makes."""


def tensors(config: dict[str, Any], seed: int = 0, device: str = "cpu") -> dict[str, torch.Tensor]:
    """All weights of a Llama or a BitNet model of these shapes: normal with standard deviation 0.02, BF16.

    They are drawn on ``device``, where that takes seconds instead of minutes, and returned on the CPU.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).mul_(0.02).bfloat16().cpu()

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, value = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    out = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (value, hidden),
            "self_attn.v_proj": (value, hidden), "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        out |= {f"{prefix}{name}.weight": normal(*shape) for name, shape in shapes.items()}
        out |= {f"{prefix}{name}.weight": torch.ones(hidden).bfloat16() for name in NORMS}
        if config["model_type"] == "bitnet":
            out[f"{prefix}self_attn.attn_sub_norm.weight"] = torch.ones(query).bfloat16()
            out[f"{prefix}mlp.ffn_sub_norm.weight"] = torch.ones(inner).bfloat16()
    out["model.norm.weight"] = torch.ones(hidden).bfloat16()
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = normal(config["vocab_size"], hidden)
    return out


def write(
    folder: Path, model: str, layers: int | None = None, device: str = "cpu", vocabulary: int | None = None
) -> Path:
    """Write the checkpoint into `folder`, config.json last. model: one of SHAPES. layers, vocabulary: if other than the
    model's. device: draws the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    config = {**SHAPES[model], "dtype": "bfloat16", **{name: size for name, size in changed.items() if size}}
    save_file(tensors(config, device=device), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def halve(source: Path, out: Path, size: int = GROUP) -> None:
    """A copy in which the weaker half of all groups of each linear is zero: a conversion without calibration then keeps
    the rest."""
    shutil.copytree(source, out)
    config = (out / "config.json").read_text()
    (out / "config.json").unlink()  # comes last, as a sign that all is there
    weights = load_file(out / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("_proj.weight"):
            groups = tensor.view(-1, size)
            groups[groups.float().norm(dim=1).argsort()[: len(groups) // 2]] = 0
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(config)


def repeat(folder: Path, out: Path, layers: int) -> Path:
    """A checkpoint of one layer, converted or not, as one of many equal layers: speed does not depend on the weights.

    Not for loaders that compare files with their recorded hashes.
    """
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        elif path.suffix not in (".safetensors", ".json"):
            shutil.copy(path, out / path.name)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if record := config.get("slidesparse_config"):
        record["layers"] = _repeated(record["layers"], layers)
        record["files"] = {}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    weights = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    fixed = {name: tensor for name, tensor in weights.items() if not name.startswith(FIRST)}
    save_file(fixed, out / "model-fixed.safetensors", metadata={"format": "pt"})
    for layer in range(layers):
        named = {
            name.replace(FIRST, f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name not in fixed
        }
        save_file(named, out / f"model-layer{layer}.safetensors", metadata={"format": "pt"})
    return out


def _repeated(entries: dict[str, Any], layers: int) -> dict[str, Any]:
    return {
        name.replace(FIRST, f"model.layers.{layer}."): one for layer in range(layers) for name, one in entries.items()
    }
