"""The interface of all sparsity patterns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ..schemes import Scheme


class Pattern(ABC):
    """Which weights of a linear must be zero. `str` gives its name in recipes, records and on the command line."""

    rows_independent: ClassVar[bool]
    """Whether the pattern constrains each row separately."""
    whole_groups: ClassVar[bool]
    """Whether the pattern zeroes whole quantization groups, which are then stored without codes and scale."""

    @classmethod
    @abstractmethod
    def claims(cls, text: str) -> bool:
        """Whether the text has the syntax of this family."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Pattern:
        """The inverse of `str`. InputError for text that is no pattern of this family."""

    @property
    def slug(self) -> str:
        """The name of the pattern in file names: "2_8"."""
        return str(self).replace(":", "_").replace("%", "")

    @property
    @abstractmethod
    def prunes(self) -> bool:
        """Whether any weight must be zero."""

    @property
    @abstractmethod
    def density(self) -> float:
        """Largest share of weights that may be non-zero."""

    @abstractmethod
    def by_severity(self, *, severe: str, mild: str, groups: str) -> str:
        """One of the arguments: `severe` for 2:4 and 2:6, `mild` for the other 2:L patterns, `groups` for group
        patterns."""

    @property
    @abstractmethod
    def zeros_fixed(self) -> bool:
        """Whether training must keep every zero: blocks need theirs, weights in kept groups may take any value."""

    @property
    @abstractmethod
    def permuted_block(self) -> int:
        """Columns of the block in which weights compete, so that permuting the input channels can lower the loss; 0 if
        no permutation helps."""

    @property
    @abstractmethod
    def ideal_speedup(self) -> float | None:
        """Speed-up over dense on hardware that runs 2:4 exactly twice as fast; None if it does not run there."""

    @abstractmethod
    def units(self, columns: int) -> int:
        """Blocks or groups in a row of `columns` weights."""

    @abstractmethod
    def kept_groups(self, shape: tuple[int, int], size: int) -> int:
        """Groups of `size` consecutive weights that a linear [out, in] of this pattern stores."""

    @abstractmethod
    def check_scheme(self, scheme: Scheme, where: str) -> None:
        """Raise InputError if the pattern and the scheme have groups of different sizes."""

    @abstractmethod
    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Raise PatternError if a linear [out, in] cannot follow the pattern."""

    @abstractmethod
    def select(self, score: Tensor) -> Tensor:
        """score -> keep mask [out, in] bool of the highest scores. One score for each weight [out, in], or of group
        patterns for each group [out, groups]."""

    @abstractmethod
    def select_largest(self, weight: Tensor) -> Tensor:
        """weight [out, in] float -> keep mask [out, in] bool with the largest sum of squares of the kept weights."""

    @abstractmethod
    def legal_blocks(self, values: Tensor) -> int | None:
        """The number of blocks of values [out, in] that satisfy the pattern; None if it has no blocks."""

    @abstractmethod
    def check(self, values: Tensor, where: str) -> None:
        """Raise PatternError at the first place where values [out, in] violate the pattern."""

    @abstractmethod
    def check_removed(self, removed: Tensor, present: Tensor, where: str) -> None:
        """Raise InputError if `removed` weights [out, in] bool, next to `present` ones, were not pruned by this
        pattern."""

    @abstractmethod
    def describe(self) -> str:
        """The rule as a clause: "at least two of every 8 consecutive input weights are zero"."""

    @abstractmethod
    def record_fields(self, shape: tuple[int, int], *, slid: bool) -> dict[str, Any]:
        """The derived sizes in the record of a linear [out, in]. slid: whether the linear has the slide layout."""
