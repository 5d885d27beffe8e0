"""Norms and gated activations in one pass with the quantization behind them, in transformers' own modules.

A module takes part if its forward is, statement for statement, one of slidesparse_patterns.py: then its class becomes a
subclass that computes the same through the producers of the kernels. Names, parameters and hooks of loaders stay. In a
call in which it cannot, because a linear was wrapped or somebody listens to a module, it runs as transformers wrote it.

This file is copied into every checkpoint, beside modeling_slidesparse.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .slidesparse_patterns import LAST_NORM, LAYER, MLP, NORM, NORMED_MLP, holds, readers_of, written

ACTIVATIONS = {"SiLU": "silu", "SiLUActivation": "silu", "ReLUSquaredActivation": "relu2"}
"""Elements of producers by the class of an activation."""


@dataclass(frozen=True)
class Kernels:
    """What fused modules use of the kernels' package that the checkpoint runs on: SlideSparseLinear, `produced`,
    `ready_to_produce`, Producer."""

    linear: type[Any]
    produced: Callable[..., tuple[Any, Tensor | None]]
    ready: Callable[..., None]
    producer: Callable[..., Any]


@dataclass(frozen=True)
class Readers:
    """The linears that read what a module makes, by name: they may be replaced after the model is loaded."""

    kernels: Kernels
    owner: nn.Module
    names: tuple[str, ...]

    def fusable(self) -> bool:
        """Whether all are quantized linears, and some of a kind that takes codes."""
        linears = [getattr(self.owner, name) for name in self.names]
        ours = [linear for linear in linears if type(linear) is self.kernels.linear]
        return len(ours) == len(linears) > 0 and any(linear.spec.plain for linear in ours)

    def linears(self) -> list[Any] | None:
        """None if one is wrapped, or somebody listens to them or to their owner."""
        found = [getattr(self.owner, name) for name in self.names]
        ours = all(type(one) is self.kernels.linear for one in found)
        return found if ours and all(map(quiet, (self.owner, *found))) else None


def quiet(module: nn.Module) -> bool:
    """Whether nobody waits for the module to be called."""
    return not (module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 - torch has no other way


class Fused:
    """Mixed into a class of transformers by `become`."""

    fusion: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _renewed, type(self).__bases__, self.__dict__


class FusedNorm(Fused):
    """An RMSNorm. fusion: (plain, summing): its two producers; its readers."""

    def forward(self: Any, hidden_states: Tensor) -> Any:
        """What the readers make of the normalized input, or the normalized input."""
        (plain, _), readers = self.fusion
        linears = self._linears(hidden_states)
        if linears is None:
            return super().forward(hidden_states)  # type: ignore[misc]
        return readers.kernels.produced(plain, hidden_states, None, self.weight, linears)[0]

    def of_sum(self: Any, hidden_states: Tensor, residual: Tensor) -> tuple[Any, Tensor]:
        """Of the sum of both, and the sum."""
        (_, summing), readers = self.fusion
        linears = self._linears(hidden_states) if quiet(self) else None
        if linears is None or residual.dtype != hidden_states.dtype:
            total = residual + hidden_states
            return self(total), total
        found, total = readers.kernels.produced(summing, hidden_states, residual, self.weight, linears)
        return found, total

    def _linears(self: Any, hidden_states: Tensor) -> list[Any] | None:
        """None where whoever listens to the norm wants a tensor, and where dtypes are mixed."""
        if not quiet(self) or self.weight.dtype != hidden_states.dtype:
            return None
        linears: list[Any] | None = self.fusion[1].linears()
        return linears


class FusedLayer(Fused):
    """A decoder layer between whose attention and MLP the sum is normalized and quantized at once."""

    input_layernorm: Any
    post_attention_layernorm: Any

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        states, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        states, residual = self.post_attention_layernorm.of_sum(states, hidden_states)
        out: Tensor = residual + self.mlp(states)
        return out


class FusedMLP(Fused):
    """A gated MLP. fusion: the producer before down_proj; the readers gate_proj and up_proj; the reader down_proj."""

    def forward(self: Any, x: Any) -> Tensor:
        producer, inner, outer = self.fusion
        both, down, norm = inner.linears(), outer.linears(), getattr(self, "ffn_sub_norm", None)
        if both is None or down is None or not all(map(quiet, (self.act_fn, norm or self.act_fn))):
            stock: Tensor = super().forward(x)  # type: ignore[misc]
            return stock
        if isinstance(x, Tensor):
            x, _ = inner.kernels.produced(inner.kernels.producer("same"), x, None, None, both)
        gate, up = (linear(x) for linear in both)
        if norm is not None and norm.weight.dtype != gate.dtype:
            made = norm(self.act_fn(gate) * up)
        else:
            made, _ = outer.kernels.produced(producer, gate, up, None if norm is None else norm.weight, down)
        out: Tensor = down[0](made)
        return out


def fuse(model: nn.Module, kernels: Kernels) -> list[str]:
    """Fuse what can be fused in a model whose quantized linears are in place; why the rest cannot, once for each class.

    Results are those of the unfused model, to the bit where the kernels' references run, else as they say.
    """
    reasons: dict[str, None] = {}
    for module in list(model.modules()):
        if isinstance(getattr(module, "gate_proj", None), kernels.linear):
            reasons |= dict.fromkeys(_fuse_mlp(module, kernels))
        if isinstance(getattr(module, "o_proj", None), kernels.linear):
            _fuse_last_norm(module, kernels)
    for module in list(model.modules()):
        if hasattr(module, "self_attn") and hasattr(module, "mlp"):
            reasons |= dict.fromkeys(_fuse_layer(module, kernels))
    return list(reasons)


def make_ready(model: nn.Module, dtype: torch.dtype) -> None:
    """Compile the kernels of fused modules, once their linears are prepared, for activations of this dtype."""
    module: Any
    for module in model.modules():
        needed: list[tuple[Any, Readers]] = []
        if isinstance(module, FusedLayer):
            (plain, _), before = module.input_layernorm.fusion
            (_, summing), inner = module.post_attention_layernorm.fusion
            needed = [(plain, before), (summing, inner)]
        elif isinstance(module, FusedMLP):
            needed = [(module.fusion[0], module.fusion[2])]
        elif isinstance(norm := getattr(module, "attn_sub_norm", None), FusedNorm):
            needed = [(norm.fusion[0][0], norm.fusion[1])]
        for producer, readers in needed:
            readers.kernels.ready(producer, dtype, readers.linears())


def _fuse_mlp(mlp: Any, kernels: Kernels) -> list[str]:
    inner, outer = Readers(kernels, mlp, ("gate_proj", "up_proj")), Readers(kernels, mlp, ("down_proj",))
    if not (inner.fusable() and outer.fusable()):
        return []
    name, normed = type(mlp).__name__, written(mlp, NORMED_MLP)
    if not (normed and written(mlp.ffn_sub_norm, NORM)) and not written(mlp, MLP):
        return [f"{name} computes something else"]
    element = ACTIVATIONS.get(type(mlp.act_fn).__name__)
    if element is None:
        return [f"{name} has the activation {type(mlp.act_fn).__name__}"]
    producer = kernels.producer(element, mlp.ffn_sub_norm.variance_epsilon if normed else None)
    become(mlp, FusedMLP, (producer, inner, outer))
    return []


def _fuse_layer(layer: Any, kernels: Kernels) -> list[str]:
    if not any(isinstance(one, kernels.linear) and one.spec.plain for one in layer.modules()):
        return []
    norms = getattr(layer, "input_layernorm", None), getattr(layer, "post_attention_layernorm", None)
    before = Readers(kernels, layer.self_attn, readers_of(type(layer.self_attn)))
    if not (written(layer, LAYER) and all(written(norm, NORM) for norm in norms)):
        return [f"{type(layer).__name__} computes something else"]
    if not before.fusable() or not isinstance(layer.mlp, FusedMLP):
        return [f"{type(layer).__name__} has linears that are not quantized to 8 bits"]
    become_norm(norms[0], before)
    become_norm(norms[1], layer.mlp.fusion[1])
    become(layer, FusedLayer, None)
    return []


def _fuse_last_norm(attention: Any, kernels: Kernels) -> None:
    """BitNet's norm before o_proj, which reads nothing else."""
    readers, norm = Readers(kernels, attention, ("o_proj",)), getattr(attention, "attn_sub_norm", None)
    if readers.fusable() and written(norm, NORM) and holds(type(attention), LAST_NORM):
        become_norm(norm, readers)


def become(module: Any, fused: type, fusion: Any) -> None:
    """Give a module its fused class and what that needs."""
    stock: Any = type(module)
    module.fusion = fusion
    module.__class__ = fused_class(fused, stock)


def become_norm(norm: Any, readers: Readers) -> None:
    producers = (readers.kernels.producer(element, norm.variance_epsilon) for element in ("same", "sum"))
    become(norm, FusedNorm, (tuple(producers), readers))


@cache
def fused_class(fused: type, stock: type) -> type:
    """Named as the stock class: loaders know it by its name."""
    return type(stock.__name__, (fused, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})


def _renewed(fused: type, stock: type) -> Any:
    """A module without contents, for copies."""
    kind: Any = fused_class(fused, stock)
    return kind.__new__(kind)
