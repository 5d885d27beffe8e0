"""The model families, by model_type of config.json: the only place with names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .architecture import Architecture, FreeChannels, Linear, Producer
from .config_fields import check_fields

LLAMA = Architecture(
    attention=(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)),
    mlp=(("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
    norms=("input_layernorm", "post_attention_layernorm"),
    heads=FreeChannels((Producer("self_attn.v_proj"),), "self_attn.o_proj"),
    inner=FreeChannels((Producer("mlp.gate_proj"), Producer("mlp.up_proj")), "mlp.down_proj", linear_in="mlp.up_proj"),
    layers="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    residual_norms=("input_layernorm", "post_attention_layernorm"),
)
BITNET = replace(
    LLAMA,
    norms=(*LLAMA.norms, "self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    heads=FreeChannels((Producer("self_attn.v_proj"),), "self_attn.o_proj", "self_attn.attn_sub_norm"),
    inner=FreeChannels((Producer("mlp.gate_proj"), Producer("mlp.up_proj")), "mlp.down_proj", "mlp.ffn_sub_norm"),
    residual_norms=None,
)
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GEMMA2 = replace(
    LLAMA,
    norms=(*LLAMA.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    tied=True,
    head_dim=256,
    residual_norms=None,
)
GLM4 = replace(
    LLAMA,
    mlp=(("mlp.gate_up_proj",), ("mlp.down_proj",)),
    norms=(*LLAMA.norms, "post_self_attn_layernorm", "post_mlp_layernorm"),
    inner=FreeChannels((Producer("mlp.gate_up_proj", blocks=2),), "mlp.down_proj"),
    head_dim=128,
    residual_norms=None,
)
PHI3 = replace(
    GLM4,
    attention=(("self_attn.qkv_proj",), ("self_attn.o_proj",)),
    norms=LLAMA.norms,
    heads=FreeChannels((Producer("self_attn.qkv_proj", others_first=True),), "self_attn.o_proj"),
    head_dim=None,
    residual_norms=LLAMA.residual_norms,
)

FAMILIES: Mapping[str, Architecture] = {
    "bitnet": BITNET,
    "cohere2": replace(LLAMA, norms=("input_layernorm",), tied=True, residual_norms=None),
    "gemma2": GEMMA2,
    "gemma3_text": replace(GEMMA2, norms=(*GEMMA2.norms, *QK_NORMS)),
    "glm4": GLM4,
    "granite": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "olmo2": replace(
        LLAMA, norms=("post_attention_layernorm", "post_feedforward_layernorm", *QK_NORMS), residual_norms=None
    ),
    "phi3": PHI3,
    "qwen2": LLAMA,
    "qwen3": replace(LLAMA, norms=(*LLAMA.norms, *QK_NORMS), head_dim=128),
    "smollm3": replace(LLAMA, tied=True),
}

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The fields of config.json with the number of experts of a layer."""

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
    """The family of the model that config.json describes.

    InputError for unknown families, mixtures of experts, models with inputs other than text, and for fields that are
    missing, have another type, or are absurdly large.
    """
    model_type = str(config.get("model_type"))
    if model_type in FAMILIES:
        check_fields(config)
        return FAMILIES[model_type]
    what = f"unknown architecture: config.json has model_type '{model_type}'"
    inner = config.get("text_config")
    experts = next((config[key] for key in EXPERTS if config.get(key)), None)
    if isinstance(inner, Mapping):
        what += f", a language model ('{inner.get('model_type')}' in text_config) with towers for other inputs"
    elif experts:
        what += f", a mixture of {experts} experts, whose linears are stored together in one tensor"
    raise InputError(what, hint=f"supported: {', '.join(sorted(FAMILIES))}")


def decoder_linears(config: Mapping[str, Any]) -> list[Linear]:
    """The linears of the model that config.json describes, in order of layer and data flow.

    InputError for an unknown family, or if config.json lacks the number of layers.
    """
    return architecture_of(config).decoder_linears(config)
