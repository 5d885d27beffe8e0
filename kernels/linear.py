"""SlideSparseLinear: a quantized linear of a checkpoint of any kind, as a torch module.

It is made with the tensors of its checkpoint as (empty) parameters, so that any loader can fill them. `prepare` turns
them into the prepared weight of a backend and drops them; saving turns that back into the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backends.base import Backend, Dtypes
from .backends.choose import AUTO, Settings, choose
from .backends.produced import Reader, complete, run_produced
from .backends.ready import make_ready
from .producers.reference import Producer
from .spec import LinearSpec


class SlideSparseLinear(nn.Module):
    """x [..., K] float, or what `produced` made for it -> [..., N] of the same dtype.

    Its parameters are the tensors of `spec`, and its bias; once it is prepared, the bias alone, and the prepared weight
    stands in its buffers. backend: None until it is prepared. why: the reason for that backend, in words.
    ValueError for an input of another width, or on another device.
    """

    bias: Tensor | None
    prepared: tuple[Tensor, ...]

    def __init__(
        self, spec: LinearSpec, *, bias: bool, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.in_features, self.out_features = spec.columns, spec.rows
        self.backend: Backend | None = None
        self.why = ""
        self.prepared = ()
        for name, (shape, kind) in spec.tensors().items():
            self._set(name, torch.empty(shape, dtype=kind, device=device))
        self._set("bias", torch.empty(spec.rows, dtype=dtype, device=device) if bias else None)

    def _set(self, name: str, tensor: Tensor | None) -> None:
        self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    @classmethod
    def of(
        cls, spec: LinearSpec, named: Mapping[str, Tensor], bias: Tensor | None, *, backend: str | Settings = AUTO
    ) -> SlideSparseLinear:
        """A prepared linear of the tensors of a checkpoint, on the device that they are on. ValueError as `prepare`."""
        linear = cls(spec, bias=bias is not None, dtype=torch.float32, device="meta")
        linear._set("bias", bias)
        linear._use(named, backend)
        return linear

    def prepare(self, backend: str | Settings = AUTO, dtype: torch.dtype | None = None) -> None:
        """Turn the loaded tensors into a backend's prepared weight, on the device they are on; nothing if that is done.

        backend: auto, both, the name of one, or all settings. dtype: of the activations to come, for which kernels are
        compiled now; None: of the bias, or torch's default. ValueError if the weights are damaged or the backend cannot
        run them.
        """
        if self.backend is None:
            self._use(self.stored(), backend, dtype)

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint, whatever form they are in now."""
        if self.backend is not None:
            named: dict[str, Tensor] = self.backend.weight(self.prepared).named()
            return named
        return {name: self._parameters[name].detach() for name in self.spec.tensors()}  # type: ignore[union-attr]

    def _use(self, named: Mapping[str, Tensor], wanted: str | Settings, dtype: torch.dtype | None = None) -> None:
        weight = self.spec.weight(named)
        settings = Settings(wanted) if isinstance(wanted, str) else wanted
        choice = choose(self.spec, next(iter(named.values())).device, settings)
        term = None if self.bias is None else self.bias.dtype
        dtypes = Dtypes(dtype or term or torch.get_default_dtype(), term)
        choice, prepared = make_ready(choice, weight, settings, dtypes)
        self.backend, self.why, self.prepared = choice.backend, choice.why, prepared
        for name in self.spec.tensors():
            self._parameters.pop(name, None)
        self._buffers.clear()
        for number, tensor in enumerate(prepared):
            # For whoever counts or looks for tensors; `forward` takes them from `prepared`.
            self.register_buffer(f"prepared_{number}", tensor, persistent=False)

    def forward(self, x: Tensor | Produced) -> Tensor:
        if isinstance(x, Produced):
            return x.of(self)
        self._check(x)
        assert self.backend is not None
        # Not from buffers and parameters by name: torch's attribute lookup takes a microsecond for each.
        return self.backend(x, self.prepared, self._parameters["bias"])

    def reader(self, x: Tensor) -> Reader:
        """Itself as one that reads what is produced from x. Raises as `forward`."""
        self._check(x)
        assert self.backend is not None
        return Reader(self.backend, self.prepared, self._parameters["bias"])

    def _check(self, x: Tensor) -> None:
        if self.backend is None:
            raise RuntimeError("this linear has not been prepared: call prepare() once its weights are loaded")
        if x.shape[-1] != self.in_features:
            raise ValueError(f"{self.spec}: an input of {x.shape[-1]} columns, {self.in_features} were expected")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.backend is not None:
            for name, tensor in self.stored().items():
                destination[f"{prefix}{name}"] = tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SlideSparseLinear:
        """Moves go through, casts do not: codes and scales are what they are. Another device, another backend."""
        if self.bias is not None:
            self._set("bias", fn(self.bias.detach()))
        if self.backend is None:
            for name in self.spec.tensors():
                tensor = self._parameters[name]
                assert tensor is not None
                device = _moved(fn, tensor.device)
                empty = tensor.is_meta and device.type != "meta"
                self._set(name, torch.empty_like(tensor, device=device) if empty else tensor.detach().to(device))
            return self
        device = _moved(fn, self.backend.device)
        if device != self.backend.device:
            self._use({name: tensor.to(device) for name, tensor in self.stored().items()}, AUTO)
        return self

    def extra_repr(self) -> str:
        return f"{self.spec}, bias={self.bias is not None}, backend={self.backend.name if self.backend else None}"


class Produced:
    """What linears made of an activation that was never written down: stands for it where they take their input.

    shape: of the activation.
    """

    def __init__(self, shape: torch.Size, linears: Sequence[SlideSparseLinear], outputs: Sequence[Tensor]) -> None:
        self.shape = shape
        self._outputs = list(zip(linears, outputs, strict=True))

    def of(self, linear: SlideSparseLinear) -> Tensor:
        """The output of one of the linears. ValueError for another."""
        for one, output in self._outputs:
            if one is linear:
                return output
        raise ValueError(f"{linear.spec}: its input was quantized for other linears and exists nowhere")


def produced(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, linears: Sequence[SlideSparseLinear]
) -> tuple[Produced, Tensor | None]:
    """x, other [..., K], weight [K], all of one dtype, as `producer` takes them -> what the linears make of it, and
    x + other for the element sum. Raises as SlideSparseLinear."""
    outputs, total = run_produced(producer, x, other, weight, [linear.reader(x) for linear in linears])
    return Produced(x.shape, linears, outputs), total


def ready_to_produce(producer: Producer, dtype: torch.dtype, linears: Sequence[SlideSparseLinear]) -> None:
    """Compile what `produced` starts on activations of this dtype for prepared linears, so that no call has to."""
    complete(producer, linears[0].in_features, dtype, [linear.backend for linear in linears if linear.backend])


def _moved(fn: Callable[[Tensor], Tensor], device: torch.device) -> torch.device:
    """Where `fn` takes what is on `device`."""
    return fn(torch.empty(0, dtype=torch.uint8, device=device)).device
