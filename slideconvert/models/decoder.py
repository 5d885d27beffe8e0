"""A model taken apart: embedding, decoder layers one at a time, head. Nothing but the layer at hand is in memory.

The layers are transformers' own modules, so every detail of an architecture is theirs. What a model passes to its
layers besides the hidden states (rotary embeddings, masks) is recorded once from the model's own forward pass.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.reader import Checkpoint
from ..core.precision import model_precision, running
from ..core.weights import check_finite, floats
from ..errors import InputError
from ..formats.record import Record, describe_linear, read_record
from .architecture import ATTENTION, LAYER_PREFIX, LINEARS, MLP, attention_heads
from .load import empty_model

STAGES = (ATTENTION[:3], ATTENTION[3:], MLP[:2], MLP[2:])
"""The linears of a layer by the input they share, in the order in which data meets them."""


class Decoder:
    """The source model, layer by layer, weights in float32 on `device`; tokens run through them in `dtype`."""

    def __init__(self, source: Checkpoint, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self._record: Record | None = read_record(source.config, str(source.path))
        self._skeleton = empty_model(source)
        self._passed: list[dict[str, Any]] = []

    def tensor(self, name: str) -> Tensor:
        """A tensor outside the linears, float32 on the device."""
        return self.source.read(name).float().to(self.device)

    def weight(self, name: str) -> Tensor:
        """The weight of linear `name` [out, in], as it is served, float32 on the device."""
        weight = describe_linear(self.source, self._record, name).read(self.source)
        check_finite(weight, name)
        return floats(weight).to(self.device)

    def embedding(self) -> Tensor:
        """[vocabulary, hidden] the rows that tokens become, as stored, in CPU memory."""
        return self.source.read("model.embed_tokens.weight")

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads and key-value heads."""
        return attention_heads(self.source.config)

    def layer(self, number: int) -> Layer:
        """Decoder layer `number` with the source's weights."""
        module = copy.deepcopy(self._skeleton.model.layers[number])
        prefix = f"{LAYER_PREFIX}.{number}."
        weights = {f"{submodule}.weight": self.weight(prefix + submodule) for submodule in LINEARS}
        for name in module.state_dict():
            if name not in weights:
                weights[name] = self.tensor(prefix + name)
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False)
        return Layer(module.eval(), self._passed[number], self.dtype)

    def record_passed(self, length: int) -> None:
        """Learn what the model passes to its layers for windows of `length` tokens."""
        model = copy.deepcopy(self._skeleton.model)
        recorders = [_Recorder() for _ in model.layers]
        model.layers = nn.ModuleList(recorders)
        hidden = torch.zeros(1, length, self.source.config["hidden_size"], device=self.device)
        model.norm, model.embed_tokens = nn.Identity(), nn.Identity()
        with torch.no_grad():
            model.to(self.device)(inputs_embeds=hidden, use_cache=False)
        self._passed = [recorder.passed for recorder in recorders]


class _Recorder(nn.Module):
    """Stands in for a decoder layer and keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **passed: Any) -> Tensor:
        self.passed = passed
        return hidden


class _ReachedError(Exception):
    """Carries the input of the linear at which a partial run ends."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class _Known(nn.Module):
    """Attention or MLP whose part before its last projection was computed already."""

    def __init__(self, projection: nn.Module, inputs: Tensor, *, attention: bool) -> None:
        super().__init__()
        self.projection = projection
        self.inputs = inputs
        self.attention = attention

    def forward(self, *_: Any, **__: Any) -> Any:
        out = self.projection(self.inputs)
        return (out, None) if self.attention else out


class Layer:
    """One decoder layer that can be run up to the input of any of its linears, in `dtype`."""

    def __init__(self, module: nn.Module, passed: dict[str, Any], dtype: torch.dtype) -> None:
        self.module = module
        self.passed = passed
        self.dtype = dtype

    def twin(self) -> Layer:
        """The same layer once more, sharing its tensors until one of the two is given others."""
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        return Layer(copy.deepcopy(self.module, shared), self.passed, self.dtype)

    def linear(self, submodule: str) -> nn.Linear:
        """The linear at a submodule like mlp.down_proj."""
        linear = self.module.get_submodule(submodule)
        assert isinstance(linear, nn.Linear)
        return linear

    def set_weight(self, submodule: str, weight: Tensor) -> None:
        """Put a weight [out, in] float32 into the linear at `submodule`."""
        self.linear(submodule).weight = nn.Parameter(weight, requires_grad=False)

    def run(self, hidden: Tensor) -> Tensor:
        """hidden [windows, length, hidden] -> the layer's output, the same shape; with gradients, and in float32 unless
        it is said otherwise around it (precision.running)."""
        with model_precision():
            out = self.module(hidden, **self.passed)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def inputs(self, stage: int, hidden: Tensor, attended: Tensor | None = None) -> Tensor:
        """The input [windows, length, K] of the linears of STAGES[stage], in `dtype`; nothing behind it is computed.

        attended: the input of the output projection (stage 1), if it is known; it saves the attention.
        """

        def reached(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _ReachedError(args[0])

        handle = self.linear(STAGES[stage][0]).register_forward_pre_hook(reached)
        try:
            self._run(hidden, attended)
        except _ReachedError as reached_linear:
            return reached_linear.inputs.to(self.dtype)
        finally:
            handle.remove()
        raise InputError(f"{STAGES[stage][0]} is never reached", hint="this architecture is not supported")

    @torch.no_grad()
    def output(
        self, hidden: Tensor, attended: Tensor | None = None, inner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's output [windows, length, hidden], and the input of its last linear met on the way.

        attended, inner: the inputs of the output projections of attention and MLP, where they are known.
        """
        met: list[Tensor] = []
        last = self.linear(STAGES[-1][0])
        handle = last.register_forward_pre_hook(lambda _, args: met.append(args[0]))
        try:
            return self._run(hidden, attended, inner), met[0].to(self.dtype)
        finally:
            handle.remove()

    def _run(self, hidden: Tensor, attended: Tensor | None, inner: Tensor | None = None) -> Tensor:
        module: Any = self.module
        attention, mlp = module.self_attn, module.mlp
        try:
            if attended is not None:
                module.self_attn = _Known(attention.o_proj, attended, attention=True)
            if inner is not None:
                module.mlp = _Known(mlp.down_proj, inner, attention=False)
            with running(hidden.device, self.dtype):
                return self.run(hidden)
        finally:
            module.self_attn, module.mlp = attention, mlp
