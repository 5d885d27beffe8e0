"""The model families, by model_type of config.json: the only place that spells names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .architecture import Architecture, FreeChannels, Linear, Producer

LLAMA = Architecture(
    attention=(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)),
    mlp=(("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
    norms=("input_layernorm", "post_attention_layernorm"),
    heads=FreeChannels((Producer("self_attn.v_proj"),), "self_attn.o_proj"),
    inner=FreeChannels((Producer("mlp.gate_proj"), Producer("mlp.up_proj")), "mlp.down_proj"),
    layers="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
)
BITNET = replace(
    LLAMA,
    norms=(*LLAMA.norms, "self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    heads=FreeChannels((Producer("self_attn.v_proj"),), "self_attn.o_proj", "self_attn.attn_sub_norm"),
    inner=FreeChannels((Producer("mlp.gate_proj"), Producer("mlp.up_proj")), "mlp.down_proj", "mlp.ffn_sub_norm"),
)

FAMILIES: Mapping[str, Architecture] = {
    "bitnet": BITNET,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": replace(LLAMA, norms=(*LLAMA.norms, "self_attn.q_norm", "self_attn.k_norm"), head_dim=128),
}

KINDS = tuple(
    dict.fromkeys(
        submodule.rpartition(".")[2]
        for group in range(max(len(family.input_groups) for family in FAMILIES.values()))
        for family in FAMILIES.values()
        for submodule in family.input_groups[group]
    )
)
"""The last part of the name of every linear, in order of data flow."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The family of the model that config.json describes. InputError for one that is not known."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise InputError(
            f"unknown architecture: config.json has model_type '{model_type}'",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]


def decoder_linears(config: Mapping[str, Any]) -> list[Linear]:
    """The linears of the model that config.json describes, in order of layer and data flow.

    InputError for an unknown family, and if config.json does not say how many layers there are.
    """
    return architecture_of(config).decoder_linears(config)
