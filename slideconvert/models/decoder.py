"""The parts of a model: its embedding, then its decoder layers one at a time. Only the current layer is in memory.

All modules are transformers' own, so transformers defines every detail of an architecture: the model's own forward pass
computes the hidden states before the first layer, and each layer gets the same arguments besides hidden states (rotary
embeddings, masks) as in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.reader import Checkpoint
from ..core.precision import model_precision, running
from ..core.weights import check_finite, floats
from ..errors import InputError
from ..formats.record import Record, describe_linear, read_record
from .architecture import Architecture
from .families import architecture_of
from .head import Head
from .load import empty_model, running_model


class Decoder:
    """The source model, layer by layer, weights in float32 on `device`; tokens run through them in `dtype`."""

    def __init__(self, source: Checkpoint, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self.architecture = architecture_of(source.config)
        self.free = self.architecture.free_channels(source.config)
        self._record: Record | None = read_record(source.config, str(source.path))
        self._skeleton = empty_model(source)
        self._passed: list[dict[str, Any]] = []

    def tensor(self, name: str) -> Tensor:
        """A tensor outside the linears, float32 on the device."""
        return self.source.read(name).float().to(self.device)

    def weight(self, name: str) -> Tensor:
        """The weight of linear `name` [out, in], dequantized, float32 on the device. InputError if it is not finite."""
        weight = describe_linear(self.source, self._record, name).read(self.source)
        check_finite(weight, name)
        return floats(weight).to(self.device)

    def embedding(self) -> Callable[[Tensor], Tensor]:
        """tokens [sequences, length] int64 -> the hidden states before the first layer [sequences, length, hidden].

        The model's own forward pass computes them in float32 on the CPU. The returned function holds the embedding in
        float32 in CPU memory; its results are on the device.
        """
        first = _Recorder()
        model = self._with_layers([first])
        rows = self.source.read(f"{self.architecture.embedding}.weight").float()
        model.get_submodule(self.architecture.embedding).weight = nn.Parameter(rows, requires_grad=False)

        def embed(tokens: Tensor) -> Tensor:
            with torch.no_grad(), running_model(self.source):
                model.base_model(input_ids=tokens, use_cache=False)
            return first.hidden.to(self.device)

        return embed

    def layer(self, number: int) -> Layer:
        """Decoder layer `number` with the source's weights."""
        name = self.architecture.layer(number)
        module = copy.deepcopy(self._skeleton.get_submodule(name))
        weights = {f"{linear}.weight": self.weight(f"{name}.{linear}") for linear in self.architecture.linears}
        for tensor in module.state_dict():
            if tensor not in weights:
                weights[tensor] = self.tensor(f"{name}.{tensor}")
        module.load_state_dict(weights, assign=True)
        module.requires_grad_(False)
        return Layer(module.eval(), self.architecture, self._passed[number], self.dtype)

    def final_norm(self) -> nn.Module:
        """The norm behind the last layer, weights in float32 on the device."""
        name = self.architecture.final_norm
        norm: nn.Module = copy.deepcopy(self._skeleton.get_submodule(name))
        norm.load_state_dict({part: self.tensor(f"{name}.{part}") for part in norm.state_dict()}, assign=True)
        return norm.requires_grad_(False).eval()

    def head(self) -> Head:
        """Everything behind the final norm, weights on the device in the dtype in which the model runs."""
        model = copy.deepcopy(self._skeleton)
        tied = f"{self.architecture.embedding}.weight"
        body = f"{model.base_model_prefix}."
        weights = {
            name: self.source.read(name if name in self.source.tensors else tied).to(self.device, self.dtype)
            for name in model.state_dict()
            if not name.startswith(body)
        }
        model.load_state_dict(weights, strict=False, assign=True)
        return Head(model.requires_grad_(False).eval())

    def record_passed(self, length: int) -> None:
        """Record the arguments that the model passes to each of its layers for sequences of `length` tokens."""
        recorders = [_Recorder() for _ in self._skeleton.get_submodule(self.architecture.layers)]
        model = self._with_layers(recorders)
        model.set_submodule(self.architecture.embedding, nn.Identity())
        hidden = torch.zeros(1, length, self.source.config["hidden_size"], device=self.device)
        with torch.no_grad(), running_model(self.source):
            model.base_model.to(self.device)(inputs_embeds=hidden, use_cache=False)
        self._passed = [recorder.passed for recorder in recorders]

    def _with_layers(self, layers: Sequence[nn.Module]) -> Any:
        """The model without weights and final norm, with these layers."""
        model = copy.deepcopy(self._skeleton)
        model.set_submodule(self.architecture.layers, nn.ModuleList(layers))
        model.set_submodule(self.architecture.final_norm, nn.Identity())
        return model


class _Recorder(nn.Module):
    """Replaces a decoder layer and records its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor
        self.passed: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **passed: Any) -> Tensor:
        self.hidden, self.passed = hidden, passed
        return hidden


class _ReachedError(Exception):
    """Carries the input of the linear at which a partial run ends."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class _Known(nn.Module):
    """Attention or MLP with a known input of its output projection."""

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

    def __init__(
        self, module: nn.Module, architecture: Architecture, passed: dict[str, Any], dtype: torch.dtype
    ) -> None:
        self.module = module
        self.architecture = architecture
        self.passed = passed
        self.dtype = dtype

    def twin(self) -> Layer:
        """A copy of the layer that shares its tensors until set_weight replaces them in one of the two."""
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        return Layer(copy.deepcopy(self.module, shared), self.architecture, self.passed, self.dtype)

    def linear(self, submodule: str) -> nn.Linear:
        """The linear at a submodule like mlp.down_proj."""
        linear = self.module.get_submodule(submodule)
        assert isinstance(linear, nn.Linear)
        return linear

    def set_weight(self, submodule: str, weight: Tensor) -> None:
        """Put a weight [out, in] float32 into the linear at `submodule`."""
        self.linear(submodule).weight = nn.Parameter(weight, requires_grad=False)

    def run(self, hidden: Tensor) -> Tensor:
        """hidden [sequences, length, hidden] -> the layer's output, the same shape; with gradients, and in float32
        unless the caller is inside precision.running."""
        with model_precision():
            out = self.module(hidden, **self.passed)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states

    @torch.no_grad()
    def inputs(self, group: int, hidden: Tensor, attended: Tensor | None = None) -> Tensor:
        """The input [sequences, length, K] of an input group, in `dtype`; nothing after it is computed.

        attended: the input of attention's output projection, if known, which saves computing attention.
        """
        first = self.architecture.input_groups[group][0]

        def reached(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _ReachedError(args[0])

        handle = self.linear(first).register_forward_pre_hook(reached)
        try:
            self._run(hidden, attended)
        except _ReachedError as reached_linear:
            return reached_linear.inputs.to(self.dtype)
        finally:
            handle.remove()
        raise InputError(f"{first} is never reached", hint="this architecture is not supported")

    @torch.no_grad()
    def output(
        self, hidden: Tensor, attended: Tensor | None = None, inner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's output [sequences, length, hidden], and the input of its last linear.

        attended, inner: the inputs of the output projections of attention and MLP, if known.
        """
        met: list[Tensor] = []
        last = self.linear(self.architecture.linears[-1])
        handle = last.register_forward_pre_hook(lambda _, args: met.append(args[0]))
        try:
            return self._run(hidden, attended, inner), met[0].to(self.dtype)
        finally:
            handle.remove()

    def _run(self, hidden: Tensor, attended: Tensor | None, inner: Tensor | None = None) -> Tensor:
        replaced = {}
        try:
            for groups, known in ((self.architecture.attention, attended), (self.architecture.mlp, inner)):
                if known is not None:
                    projection, part = groups[-1][0], groups[-1][0].rpartition(".")[0]
                    replaced[part] = self.module.get_submodule(part)
                    attention = groups is self.architecture.attention
                    self.module.set_submodule(part, _Known(self.linear(projection), known, attention=attention))
            with running(hidden.device, self.dtype):
                return self.run(hidden)
        finally:
            for part, module in replaced.items():
                self.module.set_submodule(part, module)
