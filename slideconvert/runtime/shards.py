"""Which bytes of a packed linear a tensor-parallel rank needs, and how they become a packed linear of their own.

A rank of a row-parallel linear multiplies K / ranks of the K columns. Packed, whole groups of columns lie side by
side, padding only at the very end, so a rank reads the windows of its groups:

    2:8, K = 48, rank 1 of 2     columns 24 … 47 = groups 3 … 5 = windows 9 … 17
    weight_packed                two values a window: columns 18 … 35
    weight_meta                  two windows a byte: bytes 4 … 8, of which the low half of byte 4 is rank 0's
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..core.patterns import BlockPattern
from ..kernels.backends.base import Codes, LinearSpec
from ..kernels.windows import EMPTY_BYTE


@dataclass(frozen=True)
class Shard:
    """Columns start … stop - 1 of a linear with `columns` columns, packed by `pattern`."""

    pattern: BlockPattern
    columns: int
    start: int
    stop: int

    @classmethod
    def of_rank(cls, pattern: BlockPattern, columns: int, rank: int, ranks: int) -> Shard:
        """The columns of one rank; `ranks` divides `columns`."""
        width = columns // ranks
        return cls(pattern, columns, rank * width, (rank + 1) * width)

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def aligned(self) -> bool:
        """Whether it is made of whole groups (the last one may be ragged), so that it is a 2:L linear itself."""
        return self.start % self.pattern.block == 0 and (
            self.stop % self.pattern.block == 0 or self.stop == self.columns
        )

    @property
    def covering(self) -> Shard:
        """The smallest aligned shard that holds this one."""
        group = self.pattern.block
        start, stop = self.start // group * group, min(-(-self.stop // group) * group, self.columns)
        return replace(self, start=start, stop=stop)

    @property
    def windows(self) -> tuple[int, int]:
        """First window that it needs, and the one after the last; for the whole linear, padding windows too."""
        if self.width == self.columns:
            return 0, self.pattern.slid_columns(self.columns) // 4
        return (
            self.start // self.pattern.block * self.pattern.windows,
            self.pattern.units(self.stop) * self.pattern.windows,
        )

    @property
    def values(self) -> slice:
        """Columns of weight_packed [N, K'/2] that it needs."""
        first, end = self.windows
        return slice(2 * first, 2 * end)

    @property
    def meta(self) -> slice:
        """Columns of weight_meta [N, K'/8] that it needs; the outer ones may be shared with the neighbours."""
        first, end = self.windows
        return slice(first // 2, -(-end // 2))

    def cut(self, values: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        """The bytes that `values` and `meta` say -> the packed form of these columns alone, [N, K'/2] and [N, K'/8]
        of K = width; for an aligned shard. The neighbours' windows are gone, its own padding is there."""
        first, end = self.windows
        if first % 2:  # every nibble moves down by one
            meta = meta >> 4 | pad(meta[:, 1:], (0, 1)) << 4
        meta = meta[:, : -(-(end - first) // 2)]
        if (end - first) % 2:
            last = meta[:, -1:] & 15 | EMPTY_BYTE & 0xF0
            meta = torch.cat([meta[:, :-1], last], dim=1)
        slid = self.pattern.slid_columns(self.width)
        raw = values.view(torch.int8)[:, : 2 * (end - first)]
        raw = pad(raw, (0, slid // 2 - raw.shape[1]))
        return raw.view(values.dtype), pad(meta, (0, slid // 8 - meta.shape[1]), value=EMPTY_BYTE)

    def dense(self, values: Tensor, meta: Tensor) -> Tensor:
        """The bytes that `values` and `meta` say -> codes [N, width], aligned or not. ValueError if damaged."""
        whole = self.covering
        spec = LinearSpec(values.shape[0], whole.width, self.pattern.length, values.dtype)
        return Codes.packed(spec, *whole.cut(values, meta)).dense[:, self.start - whole.start :][:, : self.width]
