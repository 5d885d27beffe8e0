"""Group patterns, 1xG:S%: whole quantization groups of a linear are zero (GQSA, section 3.2).

1x16:50% keeps half of the groups of 16 consecutive columns, anywhere in the linear. Such weights are stored as block
sparse rows and run on kernels for groups.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError, PatternError
from ..schemes import Scheme, fitting_sizes
from .base import Pattern

KEPT_MULTIPLE = 8
DIGITS = 6
"""Decimals of a sparsity and of a row cap: records state both in the name, which determines the number of groups."""
LEAST_SPARSITY, MOST_SPARSITY = 0.0, 0.9
"""Limits of the sparsity."""


@dataclass(frozen=True)
class GroupPattern(Pattern):
    """Of all groups of `size` consecutive columns of a linear, the share `sparsity` (DIGITS decimals) is zero.

    Selection compares the groups of all rows, so rows keep different numbers of them, each at least one. row_cap: the
    most groups of a row, as a multiple of the mean; None: no limit.
    """

    rows_independent: ClassVar[bool] = False
    whole_groups: ClassVar[bool] = True

    size: int
    sparsity: float
    row_cap: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PatternError(f"groups of {self.size} columns")
        if not LEAST_SPARSITY <= self.sparsity <= MOST_SPARSITY:
            raise PatternError(
                f"sparsity {self.sparsity:g} is out of range",
                hint=f"use a share of pruned groups from {LEAST_SPARSITY:g} to {MOST_SPARSITY:g}",
            )
        if self.row_cap is not None and not 1 <= self.row_cap < math.inf:
            raise PatternError(
                f"row cap {self.row_cap:g}", hint="use a multiple of the mean number of groups in a row, 1 or more"
            )
        object.__setattr__(self, "sparsity", round(self.sparsity, DIGITS))
        object.__setattr__(self, "row_cap", self.row_cap and round(self.row_cap, DIGITS))

    @classmethod
    def claims(cls, text: str) -> bool:
        return text.strip().startswith("1x")

    @classmethod
    def parse(cls, text: str) -> GroupPattern:
        """The inverse of str: '1x16:50%', '1x16:50%:1.5'. PatternError for anything else."""
        found = re.fullmatch(r"1x(\d+):(\d+(?:\.\d+)?)%(?::(\d+(?:\.\d+)?))?", text.strip())
        if not found:
            raise PatternError(f"unknown pattern '{text}'", hint="group patterns look like 1x16:50%")
        cap = None if found[3] is None else float(found[3])
        return cls(int(found[1]), round(float(found[2]) / 100, 10), cap)

    def __str__(self) -> str:
        cap = "" if self.row_cap is None else f":{_decimals(self.row_cap)}"
        return f"1x{self.size}:{_decimals(100 * self.sparsity)}%{cap}"

    @property
    def prunes(self) -> bool:
        """Whether any group must be zero."""
        return self.sparsity > 0

    @property
    def density(self) -> float:
        """Largest share of weights that may be non-zero."""
        return 1 - self.sparsity

    def by_severity(self, *, severe: str, mild: str, groups: str) -> str:
        return groups

    @property
    def zeros_fixed(self) -> bool:
        return False

    @property
    def permuted_block(self) -> int:
        return 0

    @property
    def ideal_speedup(self) -> None:
        return None

    def units(self, columns: int) -> int:
        """Groups in a row of `columns` weights."""
        return columns // self.size

    def kept(self, shape: tuple[int, int]) -> int:
        """Groups that a linear [out, in] keeps, rounded up to a multiple of 8 so that tensors in files are aligned."""
        total = shape[0] * self.units(shape[1])
        return min(total, -(-(total - round(self.sparsity * total)) // KEPT_MULTIPLE) * KEPT_MULTIPLE)

    def most_in_row(self, shape: tuple[int, int]) -> int:
        """The most groups of a row of a linear [out, in]."""
        most = self.units(shape[1])
        return most if self.row_cap is None else min(most, math.ceil(self.row_cap * self.kept(shape) / shape[0]))

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Raise PatternError if the group size does not divide `in`, or a row would keep no group."""
        rows, columns = shape
        if columns % self.size:
            raise PatternError(
                f"{where}: {columns} input columns are not a multiple of the group size {self.size}",
                hint=fitting_sizes(columns),
            )
        if self.kept(shape) < rows:
            raise PatternError(
                f"{where}: {self} keeps {self.kept(shape)} groups of {rows} rows with {self.units(columns)} each, so "
                "some rows would be empty",
                hint="lower the sparsity or the group size",
            )

    def legal_blocks(self, values: Tensor) -> None:
        return None

    def check_scheme(self, scheme: Scheme, where: str) -> None:
        scheme.check_whole_groups(self.size, where)

    def kept_groups(self, shape: tuple[int, int], size: int) -> int:
        return self.kept(shape)

    def select(self, score: Tensor) -> Tensor:
        """score [N, K / G] float32 of groups, not NaN -> keep mask [N, K] bool of their weights."""
        return self.select_groups(score).repeat_interleave(self.size, 1)

    def select_groups(self, score: Tensor) -> Tensor:
        """score [N, K / G] float32, not NaN -> keep mask of groups [N, K / G] bool, with `kept` of them True.

        The groups with the highest scores in the linear are kept, with two limits: every row keeps its best group, and
        at most `most_in_row` groups. Of equal scores, the lower row, then the lower column is kept: the result is the
        same on every device and in every run. Raises what `check_shape` does.
        """
        rows, groups = score.shape
        shape = (rows, groups * self.size)
        self.check_shape(shape, "weight")
        order = score.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(groups, device=score.device).expand(rows, -1))
        wanted = score.masked_fill(rank == 0, torch.inf).masked_fill(rank >= self.most_in_row(shape), -torch.inf)
        keep = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        keep[wanted.flatten().argsort(descending=True, stable=True)[: self.kept(shape)]] = True
        return keep.view(rows, groups)

    def select_largest(self, weight: Tensor) -> Tensor:
        return self.select(weight.square().unflatten(1, (-1, self.size)).sum(2))

    def check(self, values: Tensor, where: str) -> None:
        """Raise PatternError if values [out, in] have more non-zero groups than allowed, in all or in a row."""
        if not self.prunes:
            return
        shape = (values.shape[0], values.shape[1])
        found = self._nonzero(values).sum(1)
        if int(found.sum()) > self.kept(shape):
            raise PatternError(
                f"{where}: {int(found.sum())} groups of {self.size} are non-zero, {self} allows {self.kept(shape)}",
                hint="prune first (slideconvert sparsify), or name the sparsity of the weights",
            )
        if int(found.amax()) > self.most_in_row(shape):
            row = int(found.argmax())
            raise PatternError(
                f"{where}: row {row} has {int(found[row])} non-zero groups, {self} allows "
                f"{self.most_in_row(shape)} in one row",
                hint="prune first (slideconvert sparsify), or omit the row cap",
            )

    def check_removed(self, removed: Tensor, present: Tensor, where: str) -> None:
        """Raise InputError at the first group that lost only some of its weights. `check` counts the groups."""
        partly = self._nonzero(removed) & self._nonzero(present)
        if bool(partly.any()):
            row, group = (int(index) for index in partly.nonzero()[0])
            raise InputError(f"{where}: row {row}, group {group} lost some of its weights, {self} prunes whole groups")

    def _nonzero(self, values: Tensor) -> Tensor:
        """values [N, K] -> whether each group has a non-zero, [N, K / G] bool."""
        kept: Tensor = values.unflatten(1, (-1, self.size)).ne(0).any(2)
        return kept

    def describe(self) -> str:
        return (
            f"{100 * self.sparsity:.0f}% of the groups of {self.size} consecutive input weights are zero, in "
            "each linear those that matter least"
        )

    def record_fields(self, shape: tuple[int, int], *, slid: bool) -> dict[str, Any]:
        return {"kept_groups": self.kept(shape)}


def _decimals(number: float) -> str:
    return f"{number:.{DIGITS}f}".rstrip("0").rstrip(".")
