"""2:L patterns: at least two zeros in every block of L consecutive input columns, and every number that follows.

Blocks start at absolute columns 0, L, 2L … of a row. Sliding stores a block as W = L/2 - 1 windows of four columns at
stride two: window w covers columns 2w … 2w+3 of its block. Each window holds at most two non-zeros, so a block holds at
most 2W = L - 2: exactly what the pattern allows. Columns 2 and 3 of a window are columns 0 and 1 of the next one, so
filling windows from left to right always finds space (SlideSparse, arXiv 2603.05232; checked exhaustively in
tests/unit/test_slide.py).

    2:8, one block of 8 columns          0 1 2 3 4 5 6 7
      window 0                           0 1 2 3
      window 1                               2 3 4 5
      window 2                                   4 5 6 7
    slid columns: 12 per 8, so K' = 1.5 K; ideal speed-up on 2:4 units: 2 / 1.5 = L / (L - 2) = 1.33

`2:inf` prunes nothing: every pair of columns gets its own window, as its columns 0 and 1, so K' = 2K.

Selection prunes the two lowest scores of every block. Existing zeros must have the lowest score, 0, and so are selected
first; the missing columns of an incomplete last block count as zeros, so a last block of L - 1 columns loses at most
one weight and a shorter one none. Of equal scores, the one with the lower column index is pruned: the result is the
same on every device and in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError, PatternError, pick
from ...kernels.planes import bits, from_planes, negative, nonzero, row_blocks, to_planes, without_negative_zero
from ..schemes import Scheme
from .base import Pattern

WINDOW = 4
"""Columns of a window: the 2:4 unit of the hardware."""
ZEROS = 2
"""Zeros of a block of a 2:L pattern, at least."""
SLID_MULTIPLE = 32
"""K' is padded with empty windows to a multiple of this: cuSPARSELt requires it of 8-bit sparse matrices."""
LENGTHS = (4, 6, 8, 10, 12, 14, 16)
"""The supported block lengths L."""


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class BlockPattern(Pattern):
    """A 2:L pattern. `length` is L, or None for 2:inf, which prunes nothing."""

    rows_independent: ClassVar[bool] = True
    whole_groups: ClassVar[bool] = False

    length: int | None

    def __post_init__(self) -> None:
        if self.length is not None and self.length not in LENGTHS:
            raise PatternError(f"pattern 2:{self.length} is not supported", hint=f"use one of {', '.join(_names())}")

    @classmethod
    def claims(cls, text: str) -> bool:
        return True

    @classmethod
    def parse(cls, text: str) -> BlockPattern:
        """'2:8', '2_8', '2:inf' or '2_inf' -> BlockPattern. InputError for other text, with the nearest name."""
        name = pick(text.strip().lower().replace("_", ":"), _names(), "pattern")
        return cls(None if name == "2:inf" else int(name.removeprefix("2:")))

    def __str__(self) -> str:
        return "2:inf" if self.length is None else f"2:{self.length}"

    @property
    def prunes(self) -> bool:
        """Whether any weight must be zero; False for 2:inf only."""
        return self.length is not None

    @property
    def block(self) -> int:
        """Columns of a block: L, or 2 for 2:inf."""
        return self.length or 2

    @property
    def windows(self) -> int:
        """Windows of a block, W = L/2 - 1; 1 for 2:inf."""
        return 1 if self.length is None else self.length // 2 - 1

    @property
    def most_nonzeros(self) -> int:
        """The most non-zeros of a block: L - 2; 2 for 2:inf."""
        return 2 * self.windows

    @property
    def density(self) -> float:
        """Largest share of weights that may be non-zero: (L - 2) / L."""
        return self.most_nonzeros / self.block

    @property
    def expansion(self) -> float:
        """K' / K before padding: 2 - 4/L."""
        return WINDOW * self.windows / self.block

    @property
    def ideal_speedup(self) -> float:
        """Speed-up over dense if 2:4 units were exactly twice as fast: 2 / expansion = L / (L - 2)."""
        return 2 / self.expansion

    def units(self, columns: int) -> int:
        """Blocks in a row of `columns` weights; an incomplete last block counts, its missing columns as zeros."""
        return -(-columns // self.block)

    def slid_columns(self, columns: int) -> int:
        """K' for K = `columns`: all windows of all blocks, padded with empty windows to a multiple of 32."""
        return _ceil_to(self.units(columns) * WINDOW * self.windows, SLID_MULTIPLE)

    def by_severity(self, *, severe: str, mild: str, groups: str) -> str:
        return severe if self.length is not None and self.length <= 6 else mild

    @property
    def zeros_fixed(self) -> bool:
        return self.prunes

    @property
    def permuted_block(self) -> int:
        return self.length or 0

    def check_scheme(self, scheme: Scheme, where: str) -> None:
        return

    def kept_groups(self, shape: tuple[int, int], size: int) -> int:
        return shape[0] * shape[1] // size

    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Raise PatternError if a row is shorter than one block."""
        if shape[1] < self.block:
            raise PatternError(
                f"{where}: {shape[1]} input columns, {self} needs at least {self.block}",
                hint="choose a shorter pattern for this layer or keep it (rule with keep: true)",
            )

    def select(self, score: Tensor) -> Tensor:
        """score [out, in], float32, float16 or bfloat16, >= 0, not NaN -> keep mask [out, in] bool.

        Exactly two are False in each full block. 2:inf keeps everything.
        """
        keep = torch.ones(score.shape, dtype=torch.bool, device=score.device)
        if self.prunes and score.is_cuda and score.shape[1] <= self.block:
            # The sweep selects one block at a time, where launching kernels dominates on a GPU: this needs few.
            pruned = max(0, ZEROS - (self.block - score.shape[1]))
            keep.scatter_(1, score.sort(dim=1, stable=True).indices[:, :pruned], False)
        elif self.prunes:
            for rows in row_blocks(score):
                keep[rows] = _select_rows(score[rows], self.block)
        return keep

    def select_largest(self, weight: Tensor) -> Tensor:
        return self.select(weight.abs())

    def legal_blocks(self, values: Tensor) -> int:
        """The number of blocks of values [out, in] with at least two zeros."""
        counts = [_nonzeros(values[rows], self.block) <= self.most_nonzeros for rows in row_blocks(values)]
        return sum(int(legal.count_nonzero()) for legal in counts)

    def check(self, values: Tensor, where: str) -> None:
        """Raise PatternError with row, columns and count of the first block [out, in] with too many non-zeros."""
        if not self.prunes:
            return
        for rows in row_blocks(values):
            taken = _nonzeros(values[rows], self.block)
            if int(taken.amax()) <= self.most_nonzeros:
                continue
            over = taken > self.most_nonzeros
            row, block = (int(index) for index in over.nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, columns {block * self.block} … "
                f"{min((block + 1) * self.block, values.shape[1]) - 1} hold {int(taken[row, block])} "
                f"non-zeros, {self} allows {self.most_nonzeros} ({ZEROS} zeros in {self.block}); "
                f"{int(over.sum())} such blocks in these rows",
                hint="prune first (slideconvert sparsify), or name the pattern that the weights satisfy",
            )

    def check_removed(self, removed: Tensor, present: Tensor, where: str) -> None:
        """Raise InputError at the first block that lost more than two weights."""
        taken = to_planes(removed.to(torch.int8), self.block).sum(0, dtype=torch.int8)
        if int(taken.amax()) > ZEROS:
            row, block = (int(index) for index in (taken > ZEROS).nonzero()[0])
            raise InputError(
                f"{where}: row {row}, block {block} lost {int(taken[row, block])} weights, {self} prunes {ZEROS}"
            )

    def describe(self) -> str:
        return f"at least two of every {self.length} consecutive input weights are zero"

    def record_fields(self, shape: tuple[int, int], *, slid: bool) -> dict[str, Any]:
        return {"slid_columns": self.slid_columns(shape[1])} if slid else {}


def _select_rows(score: Tensor, block: int) -> Tensor:
    # The bits of a float >= 0, read as an integer, order like the float itself; clearing the sign bit turns -0 to 0.
    planes = to_planes(bits(score) & torch.iinfo(bits(score).dtype).max, block)
    lowest, second = torch.minimum(planes[0], planes[1]), torch.maximum(planes[0], planes[1])
    for plane in planes[2:]:
        second = torch.minimum(second, torch.maximum(lowest, plane))
        lowest = torch.minimum(lowest, plane)
    # Scores below `second` are pruned: at most one. Of scores equal to it, the leftmost are pruned until the block has
    # lost two: one, or two if the lowest score equals it as well.
    missing = (ZEROS + negative(lowest - second)).to(torch.int8)
    keep = []
    for plane in planes:
        ahead = second - plane  # both are >= 0, so this cannot overflow
        above, below = negative(ahead).to(torch.int8), negative(-ahead).to(torch.int8)
        tie = ~(above | below)
        spared = tie & ~negative(-missing)  # a tie after the block has lost two
        missing += tie
        keep.append((above | spared) & 1)
    return from_planes(keep)[:, : score.shape[1]].view(torch.bool)


def _nonzeros(values: Tensor, block: int) -> Tensor:
    """values [rows, in] -> the number of non-zeros of every block, [rows, blocks] int8."""
    taken = torch.zeros((), dtype=torch.int8, device=values.device)
    for plane in to_planes(bits(without_negative_zero(values)), block):
        taken = taken - nonzero(plane).to(torch.int8)
    return taken


def _names() -> list[str]:
    return [*(f"2:{length}" for length in LENGTHS), "2:inf"]


ALL = (*(BlockPattern(length) for length in LENGTHS), BlockPattern(None))
"""Every supported pattern, densest pruning first."""
