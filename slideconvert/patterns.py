"""2:L patterns: at least two zeros in every L consecutive input columns, and every number that follows.

A group of L columns is re-laid ("slid") into W = L/2 - 1 windows of four lanes at stride two: window w
covers columns 2w … 2w+3 of its group. Each window keeps at most two non-zeros, so a group keeps at most
2W = L - 2: exactly what the pattern allows. Lanes 2, 3 of a window are lanes 0, 1 of the next, so filling
windows from left to right always finds room (SlideSparse, arXiv 2603.05232; checked exhaustively in
tests/test_slide.py).

    2:8, one group of 8 columns          0 1 2 3 4 5 6 7
      window 0                           0 1 2 3
      window 1                               2 3 4 5
      window 2                                   4 5 6 7
    slid columns: 12 per 8, so K' = 1.5 K; ideal speed-up on 2:4 units: 2 / 1.5 = L / (L - 2) = 1.33

`2:inf` prunes nothing: every pair of columns gets a window of its own (lanes 0, 1), K' = 2K.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PatternError, pick

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


ALL = (*(Pattern(length) for length in LENGTHS), Pattern(None))
"""Every supported pattern, densest pruning first."""


def _names() -> list[str]:
    return [*(f"2:{length}" for length in LENGTHS), "2:inf"]
