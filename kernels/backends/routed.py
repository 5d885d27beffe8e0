"""A linear on several ways: few tokens and many may run differently, on one prepared weight or on two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operand import Operand
from ..spec import LinearSpec
from .base import Backend, Dtypes, Prepared
from .rule import Route


class Routed(Backend):
    """The ways of a route, each called for its numbers of tokens.

    name: the text of the route, by which torch.compile's operator finds it again. backends: the ways by name. The
    prepared weight is that of every form that is read, one behind the other.
    """

    runs = LinearSpec
    form = "routed"

    def __init__(self, spec: Any, device: torch.device, route: Route, backends: dict[str, Backend]) -> None:
        super().__init__(spec, device)
        self.name = route.text  # type: ignore[misc]
        self.route, self.ways = route, list(backends.values())
        forms = list(dict.fromkeys(backends[way].form for way in route.ways))
        self._readers = [next(one for one in backends.values() if one.form == form) for form in forms]
        self._parts: list[slice] = []
        for reader in self._readers:
            first = self._parts[-1].stop if self._parts else 0
            self._parts.append(slice(first, first + reader.tensors))
        self._steps = [(most, backends[way], self._parts[forms.index(backends[way].form)]) for most, way in route.steps]

    @property
    def nbytes(self) -> int:
        return sum(reader.nbytes for reader in self._readers)

    def prepare(self, weight: Any) -> tuple[Tensor, ...]:
        return tuple(tensor for reader in self._readers for tensor in reader.prepare(weight))

    def weight(self, prepared: Prepared) -> Any:
        return self._readers[0].weight(prepared[self._parts[0]])

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        for _, backend, part in self._steps:
            backend.complete(prepared[part], dtypes)

    def way(self, tokens: int) -> tuple[Backend, slice]:
        for most, backend, part in self._steps:
            if most is None or tokens <= most:
                return backend, part
        raise AssertionError("a route runs any number of tokens")

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        backend, part = self.way(x.numel() // self.spec.columns)
        return backend.run(x, prepared[part], bias)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return self.way(tokens)[0].operand(tokens)

    def run_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        backend, part = self.way(scale.shape[0])
        return backend.run_codes(codes, scale, prepared[part], bias, dtype)
