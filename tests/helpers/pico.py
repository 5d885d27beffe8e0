"""Checkpoints small enough to convert in milliseconds, written without slideconvert's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY, LAYERS = 64, 88, 4, 2, 96, 3
"""INNER is no multiple of 6, 10, 12, 14 or 16: down_proj has a ragged tail under each of those patterns."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def weights(
    dtype: torch.dtype = torch.bfloat16, *, layers: int = LAYERS, bias: bool = False
) -> dict[str, torch.Tensor]:
    """All tensors of the pico Llama, random; with biases on q, k, v if asked for, as Qwen2 has them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(0.05).to(dtype)

    out = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN), "model.norm.weight": 1 + normal(HIDDEN)}
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for place, shape in shapes.items():
            out[f"{prefix}.{place}.weight"] = normal(*shape)
            if bias and place in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                out[f"{prefix}.{place}.bias"] = normal(shape[0])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{prefix}.{norm}.weight"] = 1 + normal(HIDDEN)
    return out


def write(
    folder: Path, tensors: dict[str, torch.Tensor] | None = None, config: dict[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a checkpoint folder in the Hugging Face layout, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    place = {tensor: names[number % shards] for number, tensor in enumerate(sorted(tensors))}
    for name in names:
        save_file({tensor: tensors[tensor] for tensor in place if place[tensor] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


def w8a8(folder: Path, **weight_args: Any) -> Path:
    """A W8A8 INT8 checkpoint as other tools write them: compressed-tensors, bfloat16 scales, more keys than ours."""
    tensors = {}
    for name, tensor in weights().items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        scale = (tensor.float().abs().amax(1, keepdim=True) / 127.5).bfloat16()
        tensors[name] = (tensor.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
        tensors[name.replace(".weight", ".weight_scale")] = scale
    common = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "actorder": None}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False, **weight_args},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "sparsity_config": {},
    }
    return write(folder, tensors, {"quantization_config": quantization})


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, read by the safetensors library."""
    out: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= load_file(path)
    return out


def without_reports(folder: Path) -> Any:
    """config.json without the hashes of the reports, whose errors are relative to the source of the last step."""
    config = json.loads((folder / "config.json").read_text())
    del config["slidesparse_config"]["reports"], config["slidesparse_config"]["sha256"]
    return config


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
