"""SlideLinear: the linear of a SlideSparse checkpoint, as a torch module.

y = (codes of x) @ codes.T * (scale of x) * weight_scale + bias, the activations quantized per token.

It is born with the tensors of its checkpoint as (empty) parameters, so that any loader can fill them. `prepare`
turns them into the operand of a backend and drops them; saving turns the operand back into the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .backends.base import Backend, Codes, LinearSpec
from .backends.choose import choose

LAYOUTS = ("slide", "dense")


class SlideLinear(nn.Module):
    """x [..., K] float -> [..., N] of the same dtype.

    layout: the form of its tensors in the checkpoint.
        slide   weight_packed [N, K'/2], weight_meta [N, K'/8] uint8, weight_scale [N, 1]
        dense   weight [N, K], weight_scale [N, 1]
    backend: None until prepared. why: the reason for that backend, in words.
    ValueError for an input of another width, or on another device.
    """

    weight: Tensor
    weight_packed: Tensor
    weight_meta: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    operand: Tensor | None

    def __init__(
        self, spec: LinearSpec, layout: str, *, bias: bool, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}, known: {', '.join(LAYOUTS)}")
        self.spec, self.layout = spec, layout
        self.in_features, self.out_features = spec.columns, spec.rows
        self.backend: Backend | None = None
        self.why = ""
        shapes: dict[str, tuple[tuple[int, int], torch.dtype]] = {
            "slide": {
                "weight_packed": ((spec.rows, spec.slid // 2), spec.dtype),
                "weight_meta": ((spec.rows, spec.slid // 8), torch.uint8),
            },
            "dense": {"weight": ((spec.rows, spec.columns), spec.dtype)},
        }[layout]
        for name, (shape, kind) in shapes.items():
            self._set(name, torch.empty(shape, dtype=kind, device=device))
        self._set("weight_scale", torch.empty(spec.rows, 1, dtype=torch.float32, device=device))
        self._set("bias", torch.empty(spec.rows, dtype=dtype, device=device) if bias else None)
        self.register_buffer("operand", None, persistent=False)

    def _set(self, name: str, tensor: Tensor | None) -> None:
        self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def of(
        cls, codes: Codes, weight_scale: Tensor, bias: Tensor | None, *, layout: str = "slide", backend: str = "auto"
    ) -> SlideLinear:
        """A prepared linear of these codes, on the device of `weight_scale` [N, 1]."""
        linear = cls(codes.spec, layout, bias=bias is not None, dtype=torch.float32, device="meta")
        linear._set("weight_scale", weight_scale.float().view(-1, 1))
        linear._set("bias", bias)
        linear._use(codes, backend)
        return linear

    def prepare(self, backend: str = "auto") -> None:
        """Turn the loaded tensors into a backend's operand, on the device they are on; nothing if that is done.

        backend: auto, or the name of one. ValueError if the weights are damaged or the backend cannot run them.
        """
        if self.backend is None:
            self._use(self._loaded(), backend)

    def _loaded(self) -> Codes:
        if self.layout == "dense":
            return Codes(self.spec, dense=self.weight)
        codes = Codes.packed(self.spec, self.weight_packed, self.weight_meta)
        _ = codes.dense  # ValueError if a column stands in two windows: a backend would add the two up
        return codes

    def _use(self, codes: Codes, wanted: str) -> None:
        choice = choose(self.spec, self.weight_scale.device, wanted)
        self.operand = choice.backend.prepare(codes)
        self.backend, self.why = choice.backend, choice.why
        for name in ("weight", "weight_packed", "weight_meta"):
            self._parameters.pop(name, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.backend is None:
            raise RuntimeError("this SlideLinear has not been prepared: call prepare() once its weights are loaded")
        if x.shape[-1] != self.in_features:
            raise ValueError(f"{self.spec}: an input of {x.shape[-1]} columns, {self.in_features} were expected")
        # Straight from the dictionaries: torch's attribute lookup takes a microsecond for each.
        mine = self._parameters
        return self.backend(x, self._buffers["operand"], mine["weight_scale"], mine["bias"])  # type: ignore[arg-type]

    def codes(self) -> Codes:
        """The codes of the weight, whatever form they are in now."""
        if self.backend is None or self.operand is None:
            return self._loaded()
        return self.backend.codes(self.operand)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.backend is None:
            return
        codes = self.codes()
        if self.layout == "dense":
            destination[f"{prefix}weight"] = codes.dense
        else:
            destination[f"{prefix}weight_packed"], destination[f"{prefix}weight_meta"] = codes.pack()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SlideLinear:
        """Moves go through, casts do not: codes and scales are what they are. Another device, another backend."""
        if self.backend is None or self.operand is None:
            return super()._apply(fn, recurse)
        backend, operand, scale = self.backend, self.operand, self.weight_scale
        device = fn(torch.empty(0, dtype=torch.uint8, device=scale.device)).device
        if self.bias is not None:
            self._set("bias", fn(self.bias.detach()))
        if device != scale.device:
            self._set("weight_scale", scale.detach().to(device))
            codes = backend.codes(operand)
            self._use(Codes(self.spec, slid=codes.slid.to(device)), "auto")
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}, bias={self.bias is not None}, backend={self.backend.name if self.backend else None}"
