"""The description of a model family: its decoder linears, and the data flow through a layer.

families.py declares the families. transformers' own modules compute the forward pass (norms, rotary embeddings, masks,
multipliers); nothing here repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..errors import InputError

HEADS, MLP_INNER = "heads", "inner"
"""The channels of a layer that can be permuted: those of its value heads, and the inner ones of its MLP."""


@dataclass(frozen=True)
class Linear:
    """One decoder linear: its module name (…layers.3.mlp.down_proj), decoder layer, submodule in the layer, and the
    index of its input group."""

    name: str
    layer: int
    submodule: str
    group: int

    @property
    def kind(self) -> str:
        """The last part of the name: down_proj."""
        return self.submodule.rpartition(".")[2]


@dataclass(frozen=True)
class Producer:
    """A linear whose rows are free channels.

    blocks: the number of consecutive copies of all channels: 2 in a fused gate_up_proj. others_first: whether other
    rows come before them, as in a fused qkv_proj.
    """

    submodule: str
    blocks: int = 1
    others_first: bool = False


@dataclass(frozen=True)
class FreeChannels:
    """Channels that are internal to a layer, so that they can be permuted.

    consumer: the linear that reads them as columns. norm: the norm between producers and consumer, "" without one.
    linear_in: the producer in whose rows they are linear, so that a row can take their scale; "" if none is.
    shape: of a permutation, (key-value heads, head_dim) or (inner,). readers: the number of heads that the consumer
    reads. Architecture.free_channels sets shape and readers from config.json.
    """

    producers: tuple[Producer, ...]
    consumer: str
    norm: str = ""
    shape: tuple[int, ...] = ()
    readers: int = 1
    linear_in: str = ""

    def producer(self, submodule: str) -> Producer | None:
        """The producer at `submodule`, or None."""
        return next((one for one in self.producers if one.submodule == submodule), None)


@dataclass(frozen=True)
class Architecture:
    """One family of dense decoder models.

    attention, mlp: the linears of each part of a layer in groups that share an input, in order of data flow; the last
    group is the output projection of the part. Servers fuse a group into one matrix. norms: the norms of every decoder
    layer. heads, inner: channels that can be permuted, or None. layers, embedding, final_norm, head: module names.
    tied, head_dim: the defaults of transformers for a config.json without these fields (head_dim None: hidden_size /
    num_attention_heads). residual_norms: the norms before the first linears of attention and of the MLP, if they and
    the final norm alone touch the residual stream and are RMSNorms that multiply by their weight: that weight can then
    be folded into the linears behind it, and the stream be rotated. None for other families.
    """

    attention: tuple[tuple[str, ...], ...]
    mlp: tuple[tuple[str, ...], ...]
    norms: tuple[str, ...]
    heads: FreeChannels | None
    inner: FreeChannels | None
    layers: str
    embedding: str
    final_norm: str
    head: str
    tied: bool = False
    head_dim: int | None = None
    residual_norms: tuple[str, str] | None = None

    @property
    def input_groups(self) -> tuple[tuple[str, ...], ...]:
        """The linears of a layer by the input they share, in order of data flow."""
        return self.attention + self.mlp

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of a layer, in order of data flow."""
        return tuple(submodule for group in self.input_groups for submodule in group)

    @property
    def norm_readers(self) -> dict[str, tuple[str, ...]]:
        """By residual norm the linears that read it; {} for families without such norms."""
        return dict(zip(self.residual_norms or (), (self.attention[0], self.mlp[0]), strict=False))

    @property
    def scaled(self) -> dict[str, tuple[str, ...]]:
        """By submodule whose outputs a scale can be folded into, the linears that read them: norms of the residual
        stream, and the linear half of a gated MLP."""
        found = self.norm_readers
        if self.inner and self.inner.linear_in:
            found[self.inner.linear_in] = (self.inner.consumer,)
        return found

    @property
    def attended(self) -> int:
        """The index of the input group that reads the output of attention."""
        return len(self.attention) - 1

    def layer(self, number: int) -> str:
        """The module name of a decoder layer."""
        return f"{self.layers}.{number}"

    def layer_of(self, tensor: str) -> int | None:
        """The decoder layer of a tensor, None for embeddings, the final norm and the head."""
        before, _, rest = tensor.partition(f"{self.layers}.")
        number = rest.partition(".")[0]
        return int(number) if not before and number.isascii() and number.isdecimal() else None

    def decoder_linears(self, config: Mapping[str, Any]) -> list[Linear]:
        """The linears of the model that config.json describes, in order of layer and data flow.

        InputError if config.json lacks the number of layers.
        """
        count = config.get("num_hidden_layers")
        if not isinstance(count, int) or count < 1:
            raise InputError(f"config.json has num_hidden_layers = {count!r}", hint="it must be a positive integer")
        return [
            Linear(f"{self.layer(number)}.{submodule}", number, submodule, group)
            for number in range(count)
            for group, submodules in enumerate(self.input_groups)
            for submodule in submodules
        ]

    def layer_norms(self, config: Mapping[str, Any]) -> list[str]:
        """The norm weights of all decoder layers, in order of layer."""
        return [
            f"{self.layer(number)}.{norm}.weight"
            for number in range(config["num_hidden_layers"])
            for norm in self.norms
        ]

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head shares the embedding's weight."""
        return bool(config.get("tie_word_embeddings", self.tied))

    def head_count(self, config: Mapping[str, Any]) -> int:
        """Query heads."""
        return int(config["num_attention_heads"])

    def head_size(self, config: Mapping[str, Any]) -> int:
        """Channels of one head."""
        return int(config.get("head_dim") or self.head_dim or config["hidden_size"] // self.head_count(config))

    def free_channels(self, config: Mapping[str, Any]) -> dict[str, FreeChannels]:
        """The channels of a layer that can be permuted, by name."""
        heads = self.head_count(config)
        key_value_heads = int(config.get("num_key_value_heads") or heads)
        found = {}
        if self.heads:
            found[HEADS] = replace(self.heads, shape=(key_value_heads, self.head_size(config)), readers=heads)
        if self.inner:
            found[MLP_INNER] = replace(self.inner, shape=(int(config["intermediate_size"]),))
        return found


def input_groups(linears: Iterable[Linear]) -> list[tuple[Linear, ...]]:
    """Linears grouped by layer and shared input, in order of layer and data flow; servers fuse each group."""
    key = lambda linear: (linear.layer, linear.group)  # noqa: E731
    return [tuple(members) for _, members in groupby(sorted(linears, key=key), key)]


def rule_of(submodules: Iterable[str]) -> str:
    """The pattern of a recipe rule that matches these submodules: self_attn.[qkv]_proj, mlp.[gu]*_proj."""
    names = list(submodules)
    if len(names) == 1:
        return names[0]
    module = names[0].rpartition(".")[0]
    kinds = [name.rpartition(".")[2].removesuffix("_proj") for name in names]
    rest = "" if all(len(kind) == 1 for kind in kinds) else "*"
    return f"{module}.[{''.join(kind[0] for kind in kinds)}]{rest}_proj"
