"""The tensors of a rotated model, made from those of its source: rotations and norms folded in, in float64.

Names, shapes and dtypes stay. A head that was tied to the embedding becomes a matrix of its own, since the weight of
the final norm is folded into it and not into the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import PIECE_ELEMENTS, Checkpoint
from ..models.completeness import shapes_of, surplus_tensors
from ..models.families import architecture_of
from ..models.finite import finite, finite_pieces
from ..models.load import empty_model
from .rotations import RESIDUAL, Rotations, rotate_linear, sides_of, turn_columns, turn_rows


class Folding:
    """A source and the rotations to fold into it. specs: the tensors of the rotated model, each in the dtype of the
    source's. untied: whether the head becomes a matrix of its own."""

    def __init__(self, source: Checkpoint, rotations: Rotations, device: str = "cpu") -> None:
        self.source, self._device = source, device
        self._rotations = rotations.to(torch.float64, device)
        self.architecture = architecture_of(source.config)
        self._sides = sides_of(self.architecture)
        self._embedding, self._head, self._norm = (
            f"{name}.weight"
            for name in (self.architecture.embedding, self.architecture.head, self.architecture.final_norm)
        )
        tied = self.architecture.is_tied(source.config)
        self.untied = tied and rotations.residual is not None
        left_out = {*surplus_tensors(source, shapes_of(empty_model(source))), *([self._head] if tied else [])}
        self.specs = [placed.spec for name, placed in source.tensors.items() if name not in left_out]
        if self.untied:
            self.specs.append(replace(source.spec(self._embedding), name=self._head))

    def pieces(self, spec: TensorSpec, dtype: torch.dtype) -> Iterator[Tensor]:
        """A tensor of the rotated model in pieces, in `dtype`; as it is in the source if nothing changes it.

        InputError for a tensor with a NaN or an infinity.
        """
        made = self.exact(spec.name)
        if made is None:
            yield from finite_pieces(self.source, spec.name)
            return
        for piece in made:
            yield piece.to(dtype).cpu().flatten()

    def exact(self, name: str) -> Iterator[Tensor] | None:
        """A tensor of the rotated model before it is rounded, in pieces of whole rows, float64; None for one that is
        copied."""
        layer = self.architecture.layer_of(name)
        blocks = self._rotations.layer(layer)
        if layer is None:
            return self._outside(name) if RESIDUAL in blocks else None
        prefix = f"{self.architecture.layer(layer)}."
        submodule, _, part = name.removeprefix(prefix).rpartition(".")
        if RESIDUAL in blocks and submodule in (self.architecture.residual_norms or ()):
            return self._ones(name)
        own = self._sides.get(submodule)
        if own is None or not {own.reads, own.writes} & blocks.keys():
            return None
        if part == "bias":
            rows = blocks.get(own.writes)
            return None if rows is None else iter([turn_rows(self._read(name), rows)])
        norm = own.norm if own.reads in blocks else ""
        return self._linear(name, f"{prefix}{norm}.weight" if norm else "", submodule, layer)

    def _linear(self, name: str, norm: str, submodule: str, layer: int) -> Iterator[Tensor]:
        weight = self._read(name)
        if norm:
            weight *= self._read(norm)
        yield rotate_linear(weight, self._sides[submodule], self._rotations.layer(layer))

    def _outside(self, name: str) -> Iterator[Tensor] | None:
        if name == self._norm:
            return self._ones(name)
        if name == self._embedding:
            return self._rows(name, None)
        return self._rows(self._embedding if self.untied else name, self._norm) if name == self._head else None

    def _rows(self, name: str, norm: str | None) -> Iterator[Tensor]:
        """A matrix [vocabulary, hidden] that reads or writes the stream, some rows at a time."""
        rotation = self._rotations.residual
        assert rotation is not None
        count, columns = self.source.spec(name).shape
        gain = self._read(norm) if norm else None
        step = max(1, PIECE_ELEMENTS // columns)
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = self.source.read_flat(name, start * columns, stop * columns).view(-1, columns)
            rows = rows.to(self._device, torch.float64)
            yield turn_columns(rows if gain is None else rows * gain, rotation)

    def _ones(self, name: str) -> Iterator[Tensor]:
        yield torch.ones(self.source.spec(name).shape, dtype=torch.float64)

    def _read(self, name: str) -> Tensor:
        return finite(self.source, name).to(self._device, torch.float64)
