"""The interface of all storage formats, and how one linear of a checkpoint is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import Checkpoint
from ..core.patterns import BlockPattern, Pattern
from ..core.quantize import Weight
from ..core.schemes import Scheme
from ..errors import InputError
from ..kernels.spec import LinearSpec
from ..runtime.slidesparse_record import DENSE

FLOAT_NAMES = ("BF16", "F16", "F32")
"""Container dtypes of unquantized weights and of scales per channel."""
DAMAGED = "the file is damaged: convert the model again"
DISAGREE = "the record in config.json and the weights do not belong together"


def block_length(pattern: Pattern) -> int | None:
    """L of 2:L, the patterns that windows hold; None of 2:inf."""
    assert isinstance(pattern, BlockPattern)
    return pattern.length


class Format(ABC):
    """One way to store a linear. Formats hold no state: each stands once in FORMATS (registry.py).

    A checkpoint has a layout: linears are stored in the format of that layout if it stores their scheme, else in a
    dense one. All formats of a linear hold the same codes and convert into each other exactly.
    """

    layout: ClassVar[str] = DENSE
    """The layout of the checkpoints in which linears are stored in this format."""
    takes: ClassVar[str] = ""
    """The weights that the layout is for, as text for messages; empty for dense formats."""
    description: ClassVar[str] = ""
    """What the layout looks like, as text for the model card; empty for dense formats, which stock loaders know."""
    slid: ClassVar[bool] = False
    """Whether columns are re-laid into windows."""
    canonical: ClassVar[bool] = False
    """Whether a weight has exactly one encoding, so that encoding it again must give the bytes that were read."""
    checks_pattern: ClassVar[bool] = False
    """Whether `encode` refuses a weight that violates its pattern."""
    asymmetric: ClassVar[bool] = False
    """Whether there may be zero points."""
    coding: str = ""
    """The form of BitNet's ternary weights that `decode` turns into codes (core/ternary.py); "" for all others."""

    @abstractmethod
    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        """Whether linears of this scheme can be stored. whole_groups: whether their pattern zeroes whole groups."""

    @abstractmethod
    def match(self, found: Found) -> bool:
        """Whether a checkpoint holds a linear in this format, by the names of its tensors and their dtypes."""

    @abstractmethod
    def describe(self, found: Found) -> StoredLinear:
        """How a matching linear is stored. InputError if shapes, dtypes and the record do not fit together."""

    @abstractmethod
    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        """The tensors that hold linear `name` [out, in]. dtype: container name of the floats that a format does not
        fix, which are unquantized weights (BF16 by default) and scales per channel (F32)."""

    def linear_spec(self, shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> LinearSpec | None:
        """A linear [out, in] as its kernels know it; None where they do not run it as it is stored."""
        return None

    @abstractmethod
    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        """The tensors of `specs`, filled. PatternError if the format cannot hold the weight."""

    @abstractmethod
    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        """The weight from its tensors by name. Where scheme and pattern let rows be independent, the same rows of every
        tensor give these rows of the weight. InputError for damage, with `where`."""

    def ct_format(self, scheme: Scheme) -> str:
        """The compressed-tensors format of a quantized linear."""
        return scheme.ct_format

    def ct_group(self, scheme: Scheme, targets: list[str]) -> dict[str, Any]:
        """The compressed-tensors config group of quantized linears."""
        return scheme.config_group(targets, self.ct_format(scheme))


@dataclass(frozen=True)
class Declared:
    """What a checkpoint's own record says of a linear."""

    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern


@dataclass(frozen=True)
class Found:
    """Linear `name` of a checkpoint, before its format is known. declared: what the checkpoint's own record says of it.
    coding: how its ternary weights are coded should they be no codes of a scheme; None if they are not ternary."""

    checkpoint: Checkpoint
    name: str
    declared: Declared | None
    coding: str | None

    def has(self, part: str) -> bool:
        """Whether the linear has a tensor of that name."""
        return f"{self.name}.{part}" in self.checkpoint.tensors

    def spec(self, part: str) -> TensorSpec:
        """dtype and shape of one of its tensors. InputError if it is missing."""
        return self.checkpoint.spec(f"{self.name}.{part}")

    def constrained(self, scheme: Scheme) -> Scheme:
        """The scheme, ternary if the weights are."""
        return scheme if self.coding is None else scheme.as_ternary

    @property
    def pattern(self) -> Pattern:
        """The declared pattern, else 2:inf."""
        return self.declared.pattern if self.declared else BlockPattern(None)

    def matrix(self) -> TensorSpec:
        """The tensor `weight` [out, in]. InputError if it is no matrix, or not of the declared shape."""
        spec = self.spec("weight")
        if len(spec.shape) != 2 or 0 in spec.shape:
            raise InputError(f"{spec.name}: shape {list(spec.shape)}, a matrix was expected")
        if self.declared and self.declared.shape != spec.shape:
            raise InputError(
                f"{spec.name}: shape {list(spec.shape)}, the checkpoint's record says {list(self.declared.shape)}"
            )
        return spec

    def check(self, expected: tuple[TensorSpec, ...], scheme: Scheme, *, free: str = "") -> tuple[TensorSpec, ...]:
        """The stored tensors. InputError at the first that differs from `expected`; `free` may have any float dtype."""
        found = tuple(self.checkpoint.spec(spec.name) for spec in expected)
        for want, have in zip(expected, found, strict=True):
            other_float = want.name == f"{self.name}.{free}" and have.dtype in FLOAT_NAMES and want.shape == have.shape
            if want != have and not other_float:
                assert self.declared is not None
                raise InputError(
                    f"{have.name}: {have.dtype} {list(have.shape)}, {scheme.name} {self.pattern} of "
                    f"{list(self.declared.shape)} needs {want.dtype} {list(want.shape)}",
                    hint=DISAGREE,
                )
        return found


@dataclass(frozen=True)
class StoredLinear:
    """How one linear of a checkpoint is stored.

    shape: (out, in). scheme: bf16 for any float dtype, and for ternary weights as BitNet stores them. pattern: what the
    checkpoint declares, else 2:inf. tensors: the tensors that hold it.
    """

    name: str
    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern
    format: Format
    tensors: tuple[TensorSpec, ...]

    @property
    def layout(self) -> str:
        return self.format.layout

    @property
    def coding(self) -> str:
        return self.format.coding

    @property
    def linear_spec(self) -> LinearSpec | None:
        """`Format.linear_spec` of this linear."""
        return self.format.linear_spec(self.shape, self.scheme, self.pattern)

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.tensors)

    def read(self, checkpoint: Checkpoint) -> Weight:
        """The weight as float [out, in], or as its codes and scale, which it always is if it is ternary."""
        return self.decode({spec.name: checkpoint.read(spec.name) for spec in self.tensors}, self.name)

    def decode(self, tensors: Mapping[str, Tensor], where: str) -> Weight:
        """`Format.decode` of this linear."""
        return self.format.decode(self, tensors, where)

    def encode(self, weight: Weight) -> dict[str, Tensor]:
        """`Format.encode` of this linear."""
        return self.format.encode(self.name, weight, self.pattern)
