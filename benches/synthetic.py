"""Write a random checkpoint with the shapes of a real model, as BF16 safetensors, to convert without a download.

python benches/synthetic.py /tmp/llama-1b --model llama-3.2-1b
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "num_attention_heads": 24,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "bitnet-2b": {
        "model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2",
        "max_position_embeddings": 4096, "hidden_size": 2560, "num_hidden_layers": 30, "intermediate_size": 6912,
        "num_attention_heads": 20, "num_key_value_heads": 5, "head_dim": 128, "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The part of config.json that determines the shapes."""


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
        if config.get("model_type") == "bitnet":
            out[f"{prefix}self_attn.attn_sub_norm.weight"] = torch.ones(query).bfloat16()
            out[f"{prefix}mlp.ffn_sub_norm.weight"] = torch.ones(inner).bfloat16()
    out["model.norm.weight"] = torch.ones(hidden).bfloat16()
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = normal(config["vocab_size"], hidden)
    return out


NORMS = ("input_layernorm", "post_attention_layernorm")


def write(
    folder: Path, model: str, layers: int | None = None, device: str = "cpu", vocabulary: int | None = None
) -> Path:
    """Write the checkpoint into `folder`. layers, vocabulary: if other than the model's. device: draws the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    shapes = {**SHAPES[model], **{name: size for name, size in changed.items() if size}}
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config = {**llama, "dtype": "bfloat16", "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, **shapes}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors(shapes, device=device), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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


FIRST = "model.layers.0."


def _repeated(entries: dict[str, Any], layers: int) -> dict[str, Any]:
    return {
        name.replace(FIRST, f"model.layers.{layer}."): one for layer in range(layers) for name, one in entries.items()
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(list(SHAPES)), default="llama-3.2-1b")
@click.option("--layers", type=int, help="Another number of layers than the model has.")
def main(folder: Path, model: str, layers: int | None) -> None:
    """Write the checkpoint into FOLDER."""
    write(folder, model, layers)


if __name__ == "__main__":
    main()
