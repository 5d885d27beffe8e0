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
    """L of a 2:L pattern; None of 2:inf."""
    assert isinstance(pattern, BlockPattern)
    return pattern.length


class Format(ABC):
    """A way to store a linear. Formats have no state: FORMATS (registry.py) has one instance of each.

    A checkpoint has a layout: linears are stored in its format if that supports their scheme, else in a dense format.
    All formats of a linear hold the same codes and convert into each other exactly.
    """

    layout: ClassVar[str] = DENSE
    """The layout of checkpoints that use this format."""
    takes: ClassVar[str] = ""
    """The supported weights, as text for messages; empty for dense formats."""
    description: ClassVar[str] = ""
    """A description of the layout for the model card; empty for dense formats, which stock loaders know."""
    slid: ClassVar[bool] = False
    """Whether columns are stored as windows."""
    canonical: ClassVar[bool] = False
    """Whether a weight has exactly one encoding, so that encoding a decoded weight must return the same bytes."""
    checks_pattern: ClassVar[bool] = False
    """Whether `encode` refuses a weight that violates its pattern."""
    asymmetric: ClassVar[bool] = False
    """Whether the format may have zero points."""
    coding: str = ""
    """The form of BitNet's ternary weights that `decode` converts to codes (core/ternary.py); "" for other weights."""

    @abstractmethod
    def stores(self, scheme: Scheme, *, whole_groups: bool) -> bool:
        """Whether the format supports this scheme. whole_groups: whether their pattern zeroes whole groups."""

    @abstractmethod
    def match(self, found: Found) -> bool:
        """Whether the names and dtypes of a linear's tensors are those of this format."""

    @abstractmethod
    def describe(self, found: Found) -> StoredLinear:
        """The storage of a matching linear. InputError if shapes, dtypes and the record do not fit together."""

    @abstractmethod
    def specs(
        self, name: str, shape: tuple[int, int], scheme: Scheme, pattern: Pattern, *, dtype: str | None = None
    ) -> tuple[TensorSpec, ...]:
        """The tensors that hold linear `name` [out, in]. dtype: container name of the floats that a format does not
        fix, which are unquantized weights (BF16 by default) and scales per channel (F32)."""

    def linear_spec(self, shape: tuple[int, int], scheme: Scheme, pattern: Pattern) -> LinearSpec | None:
        """The kernel spec of a linear [out, in]; None if no kernel runs it as stored."""
        return None

    @abstractmethod
    def encode(self, name: str, weight: Weight, pattern: Pattern) -> dict[str, Tensor]:
        """The tensors of `specs` for a weight [out, in], by name. PatternError if the format cannot hold the weight."""

    @abstractmethod
    def decode(self, stored: StoredLinear, tensors: Mapping[str, Tensor], where: str) -> Weight:
        """The weight from its tensors by name. If scheme and pattern have independent rows, a slice of rows of every
        tensor decodes to these rows of the weight. InputError about `where` for damaged tensors."""

    def ct_format(self, scheme: Scheme) -> str:
        """The compressed-tensors format of a quantized linear."""
        return scheme.ct_format

    def ct_group(self, scheme: Scheme, targets: list[str]) -> dict[str, Any]:
        """The compressed-tensors config group of quantized linears."""
        return scheme.config_group(targets, self.ct_format(scheme))


@dataclass(frozen=True)
class Declared:
    """Shape, scheme and pattern of a linear in the checkpoint's own record."""

    shape: tuple[int, int]
    scheme: Scheme
    pattern: Pattern


@dataclass(frozen=True)
class Found:
    """Linear `name` of a checkpoint, before its format is known.

    declared: its entry in the checkpoint's own record. coding: the form of ternary weights that are not codes of a
    scheme; None if they are not ternary.
    """

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
        """The tensor `weight` [out, in]. InputError if it is not a matrix, or not of the declared shape."""
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
    """The storage of a linear in a checkpoint.

    shape: (out, in). scheme: bf16 for any float dtype, and for ternary weights in BitNet's own forms. pattern: the
    declared one, else 2:inf. tensors: the specs of its tensors.
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
        """The weight [out, in]: floats, or codes with their scale, which ternary weights always are."""
        return self.decode({spec.name: checkpoint.read(spec.name) for spec in self.tensors}, self.name)

    def decode(self, tensors: Mapping[str, Tensor], where: str) -> Weight:
        """`Format.decode` of this linear."""
        return self.format.decode(self, tensors, where)

    def encode(self, weight: Weight) -> dict[str, Tensor]:
        """`Format.encode` of this linear."""
        return self.format.encode(self.name, weight, self.pattern)
