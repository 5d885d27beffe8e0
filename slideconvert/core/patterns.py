"""2:L patterns: at least two zeros in every L consecutive input columns, and every number that follows.

A group of L columns is re-laid ("slid") into W = L/2 - 1 windows of four lanes at stride two: window w
covers columns 2w … 2w+3 of its group. Each window keeps at most two non-zeros, so a group keeps at most
2W = L - 2: exactly what the pattern allows. Lanes 2, 3 of a window are lanes 0, 1 of the next, so filling
windows from left to right always finds room (SlideSparse, arXiv 2603.05232; checked exhaustively in
tests/unit/test_slide.py).

    2:8, one group of 8 columns          0 1 2 3 4 5 6 7
      window 0                           0 1 2 3
      window 1                               2 3 4 5
      window 2                                   4 5 6 7
    slid columns: 12 per 8, so K' = 1.5 K; ideal speed-up on 2:4 units: 2 / 1.5 = L / (L - 2) = 1.33

`2:inf` prunes nothing: every pair of columns gets a window of its own (lanes 0, 1), K' = 2K.

The other kind of pattern takes whole groups: 1x16:50% leaves half of the groups of 16 consecutive columns, wherever in
the linear they are (GQSA, section 3.2). Such weights run without windows, on kernels for groups.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import PatternError, pick
from .schemes import fitting_sizes

WINDOW = 4
"""Lanes of a window: the hardware's 2:4 unit."""
ZEROS = 2
"""Zeros that every group must hold."""
SLID_MULTIPLE = 32
"""K' is padded with empty windows to a multiple of this: 8-bit sparse operands need it (cuSPARSELt)."""
LENGTHS = (4, 6, 8, 10, 12, 14, 16)
"""The group lengths L that are supported."""


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Pattern:
    """A 2:L pattern. `length` is L, or None for 2:inf (nothing pruned, every window re-laid)."""

    length: int | None

    def __post_init__(self) -> None:
        if self.length is not None and self.length not in LENGTHS:
            raise PatternError(f"pattern 2:{self.length} is not supported", hint=f"use one of {', '.join(_names())}")

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """'2:8', '2_8', '2:inf' or '2_inf' -> Pattern. InputError names the nearest for anything else."""
        name = pick(text.strip().lower().replace("_", ":"), _names(), "pattern")
        return cls(None if name == "2:inf" else int(name.removeprefix("2:")))

    def __str__(self) -> str:
        return "2:inf" if self.length is None else f"2:{self.length}"

    @property
    def slug(self) -> str:
        """The pattern as it stands in file names and on the command line: 2_8."""
        return str(self).replace(":", "_")

    @property
    def prunes(self) -> bool:
        """Whether any weight has to go; False for 2:inf only."""
        return self.length is not None

    @property
    def group(self) -> int:
        """Columns of one group: L, or 2 for 2:inf."""
        return self.length or 2

    @property
    def windows(self) -> int:
        """Windows of one group, W = L/2 - 1; 1 for 2:inf."""
        return 1 if self.length is None else self.length // 2 - 1

    @property
    def most_nonzeros(self) -> int:
        """Non-zeros that a group may keep: L - 2; 2 of 2 for 2:inf."""
        return 2 * self.windows

    @property
    def density(self) -> float:
        """Largest share of weights that may be non-zero: (L - 2) / L."""
        return self.most_nonzeros / self.group

    @property
    def expansion(self) -> float:
        """K' / K before padding: 2 - 4/L."""
        return WINDOW * self.windows / self.group

    @property
    def ideal_speedup(self) -> float:
        """Over dense, were 2:4 units exactly twice as fast: 2 / expansion = L / (L - 2)."""
        return 2 / self.expansion

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights; a ragged tail counts as one, its missing columns as zeros."""
        return -(-columns // self.group)

    def slid_columns(self, columns: int) -> int:
        """K' for K = `columns`: all windows of all groups, padded with empty windows to a multiple of 32."""
        return _ceil_to(self.groups(columns) * WINDOW * self.windows, SLID_MULTIPLE)

    def check_columns(self, columns: int, where: str) -> None:
        """Raise PatternError if rows of `columns` weights are too short for one whole group."""
        if columns < self.group:
            raise PatternError(
                f"{where}: {columns} input columns, {self} needs at least {self.group}",
                hint="choose a shorter pattern for this layer or keep it (rule with keep: true)",
            )


KEPT_MULTIPLE = 8
DIGITS = 6
"""Decimals of a sparsity and of a row cap: records have both in words, from which follows how many groups there are."""
LEAST_SPARSITY, MOST_SPARSITY = 0.0, 0.9
"""Of group patterns: beyond, a model is nothing but its embeddings."""


@dataclass(frozen=True)
class GroupPattern:
    """Of all groups of `size` consecutive columns of a linear, the share `sparsity` is zero, in DIGITS decimals.

    Which groups go is decided for all rows of a linear at once, so that rows may keep more or fewer; none is left
    without. row_cap: no row keeps more than so many times the mean; None: as many as it likes.
    """

    size: int
    sparsity: float
    row_cap: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PatternError(f"groups of {self.size} columns")
        if not LEAST_SPARSITY <= self.sparsity <= MOST_SPARSITY:
            raise PatternError(
                f"sparsity {self.sparsity:g} is out of range",
                hint=f"the share of groups that go: {LEAST_SPARSITY:g} to {MOST_SPARSITY:g}",
            )
        if self.row_cap is not None and not 1 <= self.row_cap < math.inf:
            raise PatternError(f"row cap {self.row_cap:g}", hint="times the mean number of groups of a row: 1 or more")
        object.__setattr__(self, "sparsity", round(self.sparsity, DIGITS))
        object.__setattr__(self, "row_cap", self.row_cap and round(self.row_cap, DIGITS))

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
    def slug(self) -> str:
        """The pattern as it stands in names: 1x16_50."""
        return str(self).replace(":", "_").replace("%", "")

    @property
    def prunes(self) -> bool:
        """Whether any weight has to go."""
        return self.sparsity > 0

    @property
    def group(self) -> int:
        """Columns of one group."""
        return self.size

    @property
    def density(self) -> float:
        """Largest share of weights that may be non-zero."""
        return 1 - self.sparsity

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` weights."""
        return columns // self.size

    def kept(self, shape: tuple[int, int]) -> int:
        """Groups that stay of a linear [out, in]: a multiple of 8, rounded up, so that tensors in files are aligned."""
        total = shape[0] * self.groups(shape[1])
        return min(total, _ceil_to(total - round(self.sparsity * total), KEPT_MULTIPLE))

    def most_in_row(self, shape: tuple[int, int]) -> int:
        """Groups that one row may keep."""
        most = self.groups(shape[1])
        return most if self.row_cap is None else min(most, math.ceil(self.row_cap * self.kept(shape) / shape[0]))

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Raise PatternError if the groups do not divide the rows of a linear [out, in], or some row would be left
        without any."""
        rows, columns = shape
        if columns % self.size:
            raise PatternError(
                f"{where}: {columns} input columns are no multiple of the group size {self.size}",
                hint=fitting_sizes(columns),
            )
        if self.kept(shape) < rows:
            raise PatternError(
                f"{where}: {self} leaves {self.kept(shape)} groups for {rows} rows of {self.groups(columns)}, some "
                "with none",
                hint="lower the sparsity or the group size",
            )


AnyPattern = Pattern | GroupPattern
"""What may be zero in a linear."""


def parse_pattern(text: str) -> AnyPattern:
    """'2:8' or '1x16:50%' -> a pattern of its kind. InputError for anything else."""
    return GroupPattern.parse(text) if text.strip().startswith("1x") else Pattern.parse(text)


ALL = (*(Pattern(length) for length in LENGTHS), Pattern(None))
"""Every supported pattern, densest pruning first."""


def _decimals(number: float) -> str:
    return f"{number:.{DIGITS}f}".rstrip("0").rstrip(".")


def _names() -> list[str]:
    return [*(f"2:{length}" for length in LENGTHS), "2:inf"]
