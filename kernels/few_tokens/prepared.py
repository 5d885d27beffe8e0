"""The order in which the product of few tokens reads sparse weights: fragments of the sparse operand.

Tiles of 64 rows, units of some steps, four warps of 16 rows. A step is 64 slid columns, what mma.sp.m16n8k64 takes: of
it, a lane holds 16 values (rows g and g + 8, windows 2q, 2q + 1 and 2q + 8, 2q + 9 of 16, where lane = 4g + q) and
needs a word of metadata. A warp's part of a unit:

    values    [steps][32 lanes][16 bytes]    byte = half of the windows * 8 + (row >= 8) * 4 + q's four values
    metadata  [32 lanes][8 or 16 bytes]      of row g + 8 (q % 2), eight windows of each step from 8 (q // 2) on

Where two zeros of a block determine all of its windows, less metadata is stored than the instruction takes (`Order`).
Rows and columns beyond the weight are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..planes import bits
from ..slide_spec import SlideSpec, SlideWeight
from ..windows import EMPTY_BYTE, group_of, pack, unpack
from .division import ROWS, Unit, ceil_div
from .zeros import compact, expand, positions

STEP = 64
"""Slid columns of an instruction."""
GROUP = 16
"""Windows of a step, and blocks whose first windows are a step, then their second ones, in the order of bounds."""
LANES = ((0, 0), (1, 0), (0, 1), (1, 1))
"""For q = 0 … 3: whether the lane's metadata is of row g + 8, and of the second half of the windows."""


@dataclass(frozen=True)
class Order:
    """How a weight of 2:`length` lies.

    steps: of a unit. metadata: bytes of a lane, by what is stored:

    - *positions*, as in layout slide: two 2-bit positions of every window.
    - *patterns*, of 2:6: a nibble for each block, the number of its pair of zeros (zeros.py).
    - *bounds*, of 2:8 and 2:10: two nibbles for each block, a and b (zeros.py); for every 8 blocks all a, then all b.
      Windows lie in another order: of 16 blocks first all first windows, then all second ones …
    """

    length: int | None
    steps: int = 4
    metadata: int = 16

    @classmethod
    def of(cls, length: int | None) -> Order:
        steps, metadata = {6: (4, 8), 8: (6, 16), 10: (4, 8)}.get(length or 0, (4, 16))
        return cls(length, steps, metadata)

    @property
    def bounds(self) -> bool:
        return self.length in (8, 10)

    @property
    def unit(self) -> Unit:
        columns, warp_bytes = self.steps * STEP, self.steps * 512 + self.metadata * 32
        # Three steps of 2:8 are all windows of 16 blocks: their metadata is half of each lane's.
        return Unit(columns, warp_bytes, Unit(columns // 2, warp_bytes // 2) if self.length == 8 else None)

    @property
    def windows(self) -> int:
        """Of a block."""
        return group_of(self.length)[1]

    def units(self, spec: SlideSpec) -> int:
        return ceil_div(spec.slid, self.unit.columns)

    @property
    def constants(self) -> dict[str, int]:
        """What kernel.cu must know of it."""
        if self.length != 6:
            return {"METADATA": self.metadata}
        table = bytes(positions(a, b, 0) | positions(a, b, 1) << 4 for a, b in PAIRS.tolist())
        words = {f"TABLE_{i}": int.from_bytes(table[4 * i : 4 * i + 4], "little") for i in range(4)}
        return {"METADATA": self.metadata, **words}

    def fragments(self, weight: SlideWeight, device: torch.device) -> Tensor:
        """uint8 [tiles, units, 4, bytes of a warp's part of a unit] on the device."""
        rows, units = weight.spec.rows, self.units(weight.spec)
        if self.length in (6, 8, 10):
            kept, first, second = compact(bits(weight.dense.to(device)), self.length)
            metadata = self._zeros(padded(first, rows, self._blocks(units)), padded(second, rows, self._blocks(units)))
            values = self._arranged(padded(kept, rows, units * self.unit.columns // 2))
        else:
            codes, positions = pack(weight.slid.to(device))
            values = padded(bits(codes), rows, units * self.unit.columns // 2)
            whole = padded(positions, rows, units * self.unit.columns // 8, EMPTY_BYTE)
            # [row, unit, step, half, 4 bytes] -> [row, unit, half, step, 4 bytes]
            metadata = whole.view(-1, units, self.steps, 2, 4).transpose(2, 3).reshape(-1, units, 2, self.metadata)
        return self._woven(values.view(torch.uint8), metadata)

    def weight(self, spec: SlideSpec, fragments: Tensor, scale: Tensor) -> SlideWeight:
        """The inverse; scale [N, 1]."""
        values, metadata = self._unwoven(fragments)
        rows, units = spec.rows, self.units(spec)
        if self.length in (6, 8, 10):
            first, second = self._bounds(metadata)
            kept = self._in_blocks(values)
            dense = expand(kept[:rows].view(torch.int8), first[:rows], second[:rows], self.length)
            return SlideWeight(spec, scale, dense=dense[:, : spec.columns].contiguous().view(spec.dtype))
        whole = metadata.view(-1, units, 2, self.steps, 4).transpose(2, 3).reshape(metadata.shape[0], -1)
        codes = values[:rows, : spec.slid // 2].contiguous().view(spec.dtype)
        return SlideWeight(spec, scale, slid=unpack(codes, whole[:rows, : spec.slid // 8].contiguous()))

    def _blocks(self, units: int) -> int:
        return units * self.unit.columns // 4 // self.windows

    def _arranged(self, kept: Tensor) -> Tensor:
        """Two values of every window in the order of blocks [rows, windows * 2] -> in the order in which they lie."""
        if not self.bounds:
            return kept
        split = kept.view(kept.shape[0], -1, GROUP, self.windows, 2)
        return split.transpose(2, 3).reshape(kept.shape)

    def _in_blocks(self, values: Tensor) -> Tensor:
        if not self.bounds:
            return values
        split = values.view(values.shape[0], -1, self.windows, GROUP, 2)
        return split.transpose(2, 3).reshape(values.shape)

    def _zeros(self, first: Tensor, second: Tensor) -> Tensor:
        """a, b uint8 [rows, blocks] -> what lanes hold of them, uint8 [rows, units, 2 halves, bytes]."""
        rows = first.shape[0]
        if not self.bounds:
            numbers = PATTERNS.to(first.device)[(first * 8 + second).long()]
            # [row, unit, step, half, 4 blocks] -> [row, unit, half, step, 4 blocks]
            nibbles = numbers.view(rows, -1, self.steps, 2, 4).transpose(2, 3).reshape(rows, -1, 2, 2 * self.metadata)
        else:
            # [row, unit, 16 blocks, half, 8 blocks] -> [row, unit, half, 16 blocks, a or b, 8 blocks]
            groups = self.steps // self.windows
            both = [one.view(rows, -1, groups, 2, 8).transpose(2, 3) for one in (first, second)]
            nibbles = torch.stack(both, dim=4).reshape(rows, -1, 2, 2 * self.metadata)
        return nibbles[..., ::2] | nibbles[..., 1::2] << 4

    def _bounds(self, metadata: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse."""
        rows, units = metadata.shape[:2]
        nibbles = torch.stack([metadata & 15, metadata >> 4], dim=-1).flatten(-2)
        if not self.bounds:
            numbers = nibbles.view(rows, units, 2, self.steps, 4).transpose(2, 3).reshape(rows, -1)
            pairs = PAIRS.to(metadata.device)[numbers.long()]
            return pairs[..., 0], pairs[..., 1]
        groups = self.steps // self.windows
        both = nibbles.view(rows, units, 2, groups, 2, 8).permute(4, 0, 1, 3, 2, 5).reshape(2, rows, -1)
        return both[0], both[1]

    def _woven(self, values: Tensor, metadata: Tensor) -> Tensor:
        """values uint8 [rows, units * unit / 2], metadata uint8 [rows, units, 2, bytes]; rows a multiple of 64."""
        tiles, units, unit, steps = values.shape[0] // ROWS, metadata.shape[1], self.unit, self.steps
        out = torch.empty(tiles, units, 4, unit.warp_bytes, dtype=torch.uint8, device=values.device)
        # [tile, warp, row half, g, unit, step, window half, q, byte]
        # -> [tile, unit, warp, step, g, q, window half, row half, byte]
        split = values.view(tiles, 4, 2, 8, units, steps, 2, 4, 4)
        out[..., : steps * 512] = split.permute(0, 4, 1, 5, 3, 7, 6, 2, 8).reshape(tiles, units, 4, -1)
        # [tile, warp, row half, g, unit, window half, byte] -> [tile, warp, g, q, unit, byte]
        halves = metadata.view(tiles, 4, 2, 8, units, 2, self.metadata)
        lanes = torch.stack([halves[:, :, high, :, :, second] for high, second in LANES], dim=3)
        out[..., steps * 512 :] = lanes.permute(0, 4, 1, 2, 3, 5).reshape(tiles, units, 4, -1)
        return out

    def _unwoven(self, fragments: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse."""
        tiles, units, steps = *fragments.shape[:2], self.steps
        values = fragments[..., : steps * 512].reshape(tiles, units, 4, steps, 8, 4, 2, 2, 4)
        # [tile, unit, warp, step, g, q, window half, row half, byte]
        # -> [tile, warp, row half, g, unit, step, window half, q, byte]
        flat = values.permute(0, 2, 7, 4, 1, 3, 6, 5, 8).reshape(tiles * ROWS, -1)
        lanes = fragments[..., steps * 512 :].reshape(tiles, units, 4, 8, 4, self.metadata)
        metadata = torch.empty(tiles, 4, 2, 8, units, 2, self.metadata, dtype=torch.uint8, device=fragments.device)
        for q, (high, second) in enumerate(LANES):
            metadata[:, :, high, :, :, second] = lanes[:, :, :, :, q].permute(0, 2, 3, 1, 4)
        return flat, metadata.view(tiles * ROWS, units, 2, self.metadata)


def padded(matrix: Tensor, rows: int, columns: int, value: int = 0) -> Tensor:
    """[N, k] with rows up to a multiple of 64 and columns up to `columns`."""
    missing = (0, columns - matrix.shape[1], 0, -rows % ROWS)
    return torch.nn.functional.pad(matrix, missing, value=value)


def _pairs() -> list[tuple[int, int]]:
    """a, b of 2:6 by their number. The one whose last position is even (both zeros at the end) is 7: the kernel takes
    the highest bit of a block's positions from either half of its table. 15 stands for nothing."""
    pairs = [(a, b) for a in range(5) for b in range(a, 5) if a < 4]
    return [*pairs[:7], (4, 4), *pairs[7:], (4, 4)]


PAIRS = torch.tensor(_pairs(), dtype=torch.uint8)
PATTERNS = torch.zeros(64, dtype=torch.uint8)
"""The number of (a, b), at 8 a + b."""
for _number, (_a, _b) in enumerate(_pairs()[:15]):
    PATTERNS[8 * _a + _b] = _number
