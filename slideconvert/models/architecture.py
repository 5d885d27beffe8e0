"""Which tensors of a model are decoder linears, which of them a server fuses, and what is merely copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

LAYER_PREFIX = "model.layers"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LINEARS = ATTENTION + MLP
SIBLINGS = (ATTENTION[:3], MLP[:2])
"""Linears that serving engines fuse into one matrix: they share their input and so must share their choices."""

HEADS, MLP_INNER = "heads", "inner"
"""What of a layer can be ordered: the channels of its value heads, and the inner channels of its MLP."""


@dataclass(frozen=True)
class Channels:
    """Channels that no other layer sees, so that their order is free: the linears that make them, the norm that they
    pass (BitNet alone has one), and the linear that reads them."""

    producers: tuple[str, ...]
    norm: str
    consumer: str


FREE_CHANNELS = {
    HEADS: Channels(("self_attn.v_proj",), "self_attn.attn_sub_norm", "self_attn.o_proj"),
    MLP_INNER: Channels(("mlp.gate_proj", "mlp.up_proj"), "mlp.ffn_sub_norm", "mlp.down_proj"),
}

ARCHITECTURES = frozenset({"bitnet", "llama", "mistral", "qwen2", "qwen3"})
"""model_type values whose decoder layers hold exactly LINEARS, under LAYER_PREFIX."""


@dataclass(frozen=True)
class Linear:
    """One decoder linear: its module name (…layers.3.mlp.down_proj), decoder layer and submodule in the layer."""

    name: str
    layer: int
    submodule: str

    @property
    def kind(self) -> str:
        """The last part of the name: down_proj."""
        return self.submodule.rpartition(".")[2]


def decoder_linears(config: dict[str, Any]) -> list[Linear]:
    """config.json of a supported model -> its linears in order of layer.

    InputError for an architecture whose tensors we do not know.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"unknown architecture: config.json has model_type '{model_type}'",
            hint=f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    count = config.get("num_hidden_layers")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"config.json has num_hidden_layers = {count!r}", hint="it must be a positive integer")
    return [
        Linear(f"{LAYER_PREFIX}.{layer}.{submodule}", layer, submodule)
        for layer in range(count)
        for submodule in LINEARS
    ]


def layer_norms(config: dict[str, Any]) -> list[str]:
    """The norm weights that every decoder layer of a supported model has, in order of layer."""
    own = [channels.norm for channels in FREE_CHANNELS.values()] if config["model_type"] == "bitnet" else []
    submodules = ["input_layernorm", "post_attention_layernorm", *own]
    layers = range(config["num_hidden_layers"])
    return [f"{LAYER_PREFIX}.{layer}.{submodule}.weight" for layer in layers for submodule in submodules]


def attention_heads(config: dict[str, Any]) -> tuple[int, int]:
    """Query heads and key-value heads of a config.json."""
    heads = int(config["num_attention_heads"])
    return heads, int(config.get("num_key_value_heads") or heads)


def head_dim(config: dict[str, Any]) -> int:
    """Channels of one head of a config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // attention_heads(config)[0])


def layer_of(tensor: str) -> int | None:
    """The decoder layer a tensor belongs to, None for embeddings, the final norm and the head."""
    head, _, rest = tensor.partition(LAYER_PREFIX + ".")
    number = rest.partition(".")[0]
    return int(number) if not head and number.isdigit() else None


def siblings(linears: Iterable[Linear]) -> list[tuple[Linear, ...]]:
    """The groups of linears that are fused at serving time, layer after layer."""
    by_name = {linear.name: linear for linear in linears}
    layers = sorted({linear.layer for linear in by_name.values()})
    names = [[f"{LAYER_PREFIX}.{layer}.{submodule}" for submodule in group] for layer in layers for group in SIBLINGS]
    return [tuple(by_name[name] for name in group if name in by_name) for group in names]
