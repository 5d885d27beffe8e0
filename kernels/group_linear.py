"""GroupLinear: a linear whose weights are quantized by groups, of which some may be absent, as a torch module.

y = x @ ((stored - zero) * scale).T + bias; with activation_bits 8 the activations are quantized per token.

It is born with the tensors of its checkpoint as (empty) parameters, so that any loader can fill them. `prepare`
turns them into the operand of a backend and drops them; saving turns the operand back into the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .group_backends import GroupBackend, choose_groups
from .groups import Groups, GroupSpec, Weight, weight_of


class GroupLinear(nn.Module):
    """x [..., K] float -> [..., N] of the same dtype.

    layout: the form of its tensors in the checkpoint, gqs or dense; groups.py has their names and shapes.
    backend: None until prepared. why: the reason for that backend, in words.
    ValueError for an input of another width, or on another device.
    """

    bias: Tensor | None
    operand: Tensor | None

    def __init__(
        self, spec: GroupSpec, layout: str, *, bias: bool, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.spec, self.layout = spec, layout
        self.in_features, self.out_features = spec.columns, spec.rows
        self.backend: GroupBackend | None = None
        self.why = ""
        for name, (shape, kind) in spec.tensors(layout).items():
            self._set(name, torch.empty(shape, dtype=kind, device=device))
        self._set("bias", torch.empty(spec.rows, dtype=dtype, device=device) if bias else None)
        self.register_buffer("operand", None, persistent=False)

    def _set(self, name: str, tensor: Tensor | None) -> None:
        self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def of(cls, spec: GroupSpec, weight: Weight, bias: Tensor | None, *, backend: str = "auto") -> GroupLinear:
        """A prepared linear of this weight, on the device that it is on. ValueError if it is damaged."""
        layout = "gqs" if isinstance(weight, Groups) else "dense"
        linear = cls(spec, layout, bias=bias is not None, dtype=torch.float32, device="meta")
        linear._set("bias", bias)
        linear._use(weight, backend)
        return linear

    def prepare(self, backend: str = "auto") -> None:
        """Turn the loaded tensors into a backend's operand, on the device they are on; nothing if that is done.

        backend: auto, or the name of one. ValueError if the weights are damaged or the backend cannot run them.
        """
        if self.backend is None:
            self._use(self.stored(), backend)

    def stored(self) -> Weight:
        """The tensors of the checkpoint, whatever form they are in now."""
        if self.backend is not None and self.operand is not None:
            return self.backend.weight(self.operand)
        named = {name: self._parameters[name].detach() for name in self.spec.tensors(self.layout)}  # type: ignore[union-attr]
        return weight_of(named, self.layout)

    def _use(self, weight: Weight, wanted: str) -> None:
        choice = choose_groups(self.spec, self.layout, weight.scale.device, wanted)
        self.operand = choice.backend.prepare(weight)
        self.backend, self.why = choice.backend, choice.why
        for name in self.spec.tensors(self.layout):
            self._parameters.pop(name, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.backend is None:
            raise RuntimeError("this GroupLinear has not been prepared: call prepare() once its weights are loaded")
        if x.shape[-1] != self.in_features:
            raise ValueError(f"{self.spec}: an input of {x.shape[-1]} columns, {self.in_features} were expected")
        # Straight from the dictionaries: torch's attribute lookup takes a microsecond for each.
        return self.backend(x, self._buffers["operand"], self._parameters["bias"])  # type: ignore[arg-type]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.backend is not None:
            for name, tensor in self.stored().named().items():
                destination[f"{prefix}{name}"] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GroupLinear:
        """Moves go through, casts do not: codes and scales are what they are. Another device, another backend."""
        if self.bias is not None:
            self._set("bias", fn(self.bias.detach()))
        if self.backend is None or self.operand is None:
            for name in self.spec.tensors(self.layout):
                tensor = self._parameters[name]
                assert tensor is not None
                device = _moved(fn, tensor.device)
                empty = tensor.is_meta and device.type != "meta"
                self._set(name, torch.empty_like(tensor, device=device) if empty else tensor.detach().to(device))
            return self
        device = _moved(fn, self.operand.device)
        if device != self.operand.device:
            named = {name: tensor.to(device) for name, tensor in self.stored().named().items()}
            self._use(weight_of(named, self.layout), "auto")
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}, bias={self.bias is not None}, backend={self.backend.name if self.backend else None}"


def _moved(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where `fn` takes what is on `device`."""
    return fn(torch.empty(0, dtype=torch.uint8, device=device)).device
