"""The interface of all kinds of quantized linears: tensors, weight, text form, and the share of a tensor-parallel rank.

Kinds: slide_spec.py (2:L patterns, a scale per row) and group_spec.py (scales for groups of columns). specs.py reads
the text form of any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

TensorSpecs = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of tensors by the name that they have in a checkpoint, without the module's."""
Part = dict[str, Tensor]
"""Rows and columns of a linear, decoded, by name; all tensors have the rows first."""


class Weight(Protocol):
    """A quantized weight of one linear, in whichever form it was made from."""

    def named(self) -> dict[str, Tensor]:
        """The tensors of its layout by their names in a checkpoint."""


class LinearSpec(ABC):
    """A quantized linear without its weights. Subclasses are frozen dataclasses.

    rows, columns: N, K. layout: the form of its tensors in a checkpoint.
    """

    kind: ClassVar[str]
    plain: ClassVar[bool]
    """Whether codes and scales are those of an ordinary dense layer, which stock kernels can run."""
    rows: int
    columns: int
    layout: str

    @property
    @abstractmethod
    def pattern(self) -> str:
        """Which weights may be zero, in words."""

    @property
    @abstractmethod
    def text(self) -> str:
        """A stable text form: `kind`, then words that `from_words` reads. specs.parse_spec is its inverse."""

    @classmethod
    @abstractmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """The spec of the words of `text` that follow its kind. ValueError if there is no such linear."""

    @abstractmethod
    def tensors(self) -> TensorSpecs:
        """What a checkpoint stores of it."""

    @abstractmethod
    def weight(self, named: Mapping[str, Tensor]) -> Weight:
        """The weight of stored tensors, the inverse of `Weight.named`. ValueError if they are damaged."""

    @abstractmethod
    def resized(self, rows: int, columns: int) -> Self:
        """A linear of its kind of this shape, with nothing absent."""

    @abstractmethod
    def random(self, device: torch.device) -> Weight:
        """A random weight that follows the pattern, to measure with."""

    @abstractmethod
    def misfit(self, columns: slice) -> tuple[str, str] | None:
        """Why these columns cannot be a linear of this kind by themselves, and another way to convert the linear so
        that they can; None if they can. A tensor-parallel rank has such columns."""

    @abstractmethod
    def cut(self, named: Mapping[str, Tensor], rows: slice, columns: slice) -> Part:
        """What a tensor-parallel rank holds of the stored tensors. ValueError if they are damaged."""

    @abstractmethod
    def join(self, parts: Sequence[Part]) -> tuple[LinearSpec, Weight]:
        """Parts with the same columns, one below the other, as one linear: those of fused linears."""


def stack(parts: Sequence[Part]) -> Part:
    """Parts with the same columns, one below the other."""
    return {name: _cat([part[name] for part in parts]) for name in parts[0]}


def _cat(tensors: list[Tensor]) -> Tensor:
    if tensors[0].dtype != torch.float8_e4m3fn:
        return torch.cat(tensors)
    # As bytes: not every device can concatenate float8.
    return torch.cat([tensor.view(torch.int8) for tensor in tensors]).view(tensors[0].dtype)


def check_tensors(spec: LinearSpec, named: Mapping[str, Tensor], wanted: TensorSpecs | None = None) -> None:
    """ValueError unless `named` are the wanted tensors, by name, shape and dtype: by default those of the spec's
    layout."""
    wanted = spec.tensors() if wanted is None else wanted
    if named.keys() != wanted.keys():
        raise ValueError(f"{spec}: tensors {', '.join(sorted(named))}; {', '.join(sorted(wanted))} were expected")
    for name, (shape, dtype) in wanted.items():
        check_tensor(spec, name, named[name], shape, dtype)


def check_tensor(spec: LinearSpec, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """ValueError unless the tensor has this shape and dtype."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{spec}: {name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
