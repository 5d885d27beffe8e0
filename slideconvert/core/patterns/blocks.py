"""2:L patterns: at least two zeros in every block of L consecutive input columns, and every number that follows.

Blocks start at absolute columns 0, L, 2L … of a row. A block is re-laid ("slid") into
W = L/2 - 1 windows of four lanes at stride two: window w covers columns 2w … 2w+3 of its block. Each window keeps at
most two non-zeros, so a block keeps at most 2W = L - 2: exactly what the pattern allows. Lanes 2, 3 of a window are
lanes 0, 1 of the next, so filling windows from left to right always finds space (SlideSparse, arXiv 2603.05232; checked
exhaustively in tests/unit/test_slide.py).

    2:8, one block of 8 columns          0 1 2 3 4 5 6 7
      window 0                           0 1 2 3
      window 1                               2 3 4 5
      window 2                                   4 5 6 7
    slid columns: 12 per 8, so K' = 1.5 K; ideal speed-up on 2:4 units: 2 / 1.5 = L / (L - 2) = 1.33

`2:inf` prunes nothing: every pair of columns gets a window of its own (lanes 0, 1), K' = 2K.

In every block the two lowest scores are pruned. Zeros already there must carry the lowest score, 0, and so count first;
the missing columns of a ragged tail are zeros too, so a tail of L - 1 columns loses at most one weight and a shorter
one none. Ties break by column index, the lower one is pruned: the result is the same on every device and in every run.
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
"""Lanes of a window: the hardware's 2:4 unit."""
ZEROS = 2
"""Zeros that every block of a 2:L pattern holds."""
SLID_MULTIPLE = 32
"""K' is padded with empty windows to a multiple of this: 8-bit sparse operands need it (cuSPARSELt)."""
LENGTHS = (4, 6, 8, 10, 12, 14, 16)
"""The supported block lengths L."""


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class BlockPattern(Pattern):
    """A 2:L pattern. `length` is L, or None for 2:inf (nothing pruned, every window re-laid)."""

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
        """'2:8', '2_8', '2:inf' or '2_inf' -> BlockPattern. InputError names the nearest for anything else."""
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
        """Columns of one block: L, or 2 for 2:inf."""
        return self.length or 2

    @property
    def windows(self) -> int:
        """Windows of one block, W = L/2 - 1; 1 for 2:inf."""
        return 1 if self.length is None else self.length // 2 - 1

    @property
    def most_nonzeros(self) -> int:
        """Non-zeros that a block may keep: L - 2; 2 of 2 for 2:inf."""
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
        """Over dense, were 2:4 units exactly twice as fast: 2 / expansion = L / (L - 2)."""
        return 2 / self.expansion

    def units(self, columns: int) -> int:
        """Blocks in a row of `columns` weights; a ragged tail counts as one, its missing columns as zeros."""
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
        """Raise PatternError if rows are too short for one whole block."""
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
            # The sweep selects one block at a time, and a GPU spends all its time on starting small kernels: few here.
            pruned = max(0, ZEROS - (self.block - score.shape[1]))
            keep.scatter_(1, score.sort(dim=1, stable=True).indices[:, :pruned], False)
        elif self.prunes:
            for rows in row_blocks(score):
                keep[rows] = _select_rows(score[rows], self.block)
        return keep

    def select_largest(self, weight: Tensor) -> Tensor:
        return self.select(weight.abs())

    def legal_blocks(self, values: Tensor) -> int:
        """How many blocks of [out, in] have the zeros that the pattern demands."""
        counts = [_nonzeros(values[rows], self.block) <= self.most_nonzeros for rows in row_blocks(values)]
        return sum(int(legal.count_nonzero()) for legal in counts)

    def check(self, values: Tensor, where: str) -> None:
        """Raise PatternError with row, columns and count at the first block of [out, in] with too many non-zeros."""
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
                hint="prune first (slideconvert sparsify) or name the pattern the weights really have",
            )

    def check_removed(self, removed: Tensor, present: Tensor, where: str) -> None:
        """Raise InputError at the first block that lost more than two weights."""
        taken = to_planes(removed.to(torch.int8), self.block).sum(0, dtype=torch.int8)
        if int(taken.amax()) > ZEROS:
            row, block = (int(index) for index in (taken > ZEROS).nonzero()[0])
            raise InputError(
                f"{where}: row {row}, block {block} lost {int(taken[row, block])} weights, {self} takes {ZEROS}"
            )

    def describe(self) -> str:
        return f"at least two of every {self.length} consecutive input weights are zero"

    def record_fields(self, shape: tuple[int, int], *, slid: bool) -> dict[str, Any]:
        return {"slid_columns": self.slid_columns(shape[1])} if slid else {}


def _select_rows(score: Tensor, block: int) -> Tensor:
    # The bits of a float >= 0, read as an integer, order like the float itself (and -0 is cleared by the sign bit).
    planes = to_planes(bits(score) & torch.iinfo(bits(score).dtype).max, block)
    lowest, second = torch.minimum(planes[0], planes[1]), torch.maximum(planes[0], planes[1])
    for plane in planes[2:]:
        second = torch.minimum(second, torch.maximum(lowest, plane))
        lowest = torch.minimum(lowest, plane)
    # Everything below `second` is pruned (at most one can be). Of those equal to it, as many as are missing to two,
    # from the left: one, or two if the lowest score is the same.
    missing = (ZEROS + negative(lowest - second)).to(torch.int8)
    keep = []
    for plane in planes:
        ahead = second - plane  # both are >= 0, so this cannot overflow
        above, below = negative(ahead).to(torch.int8), negative(-ahead).to(torch.int8)
        tie = ~(above | below)
        spared = tie & ~negative(-missing)  # a tie when none are missing any more
        missing += tie
        keep.append((above | spared) & 1)
    return from_planes(keep)[:, : score.shape[1]].view(torch.bool)


def _nonzeros(values: Tensor, block: int) -> Tensor:
    """Non-zeros of every block of some rows [rows, in] -> [rows, blocks] int8."""
    taken = torch.zeros((), dtype=torch.int8, device=values.device)
    for plane in to_planes(bits(without_negative_zero(values)), block):
        taken = taken - nonzero(plane).to(torch.int8)
    return taken


def _names() -> list[str]:
    return [*(f"2:{length}" for length in LENGTHS), "2:inf"]


ALL = (*(BlockPattern(length) for length in LENGTHS), BlockPattern(None))
"""Every supported pattern, densest pruning first."""
