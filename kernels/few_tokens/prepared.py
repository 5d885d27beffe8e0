"""The order in which the product of few tokens reads sparse weights: fragments of the sparse operand.

Tiles of 64 rows, units of 256 columns of the slid weight, four warps of 16 rows. A warp's part of a unit has four steps
of 64 slid columns; of each, a lane holds 16 values (as mma.sp.m16n8k64 wants its operand A: rows g and g + 8, windows
2q, 2q + 1 and 2q + 8, 2q + 9 of 16, where lane = 4g + q) and a word of metadata:

    values [4 steps][32 lanes][16 bytes]    byte = half of the windows * 8 + (row >= 8) * 4 + q's four values
    meta   [32 lanes][4 steps][4 bytes]     of row g + 8 (q % 2), eight windows from 8 (q // 2) on

Rows and columns beyond the weight are empty windows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..windows import EMPTY_BYTE
from .division import ROWS, UNIT, ceil_div

WARP_UNIT = 2560
"""Bytes of a warp's part of a unit: 2048 of values, 512 of metadata."""
VALUES = 2048
META = ((0, 0), (1, 0), (0, 1), (1, 1))
"""For q = 0 … 3: whether the lane's word of metadata is of row g + 8, and of the second eight windows."""


def to_fragments(values: Tensor, meta: Tensor) -> Tensor:
    """values [N, K'/2] of one byte each, meta [N, K'/8] uint8 (windows.pack) -> uint8 [tiles, units, 4, 2560]."""
    rows, kept = values.shape
    tiles, units = ceil_div(rows, ROWS), ceil_div(2 * kept, UNIT)
    device = values.device
    padded = torch.zeros(tiles * ROWS, units * UNIT // 2, dtype=torch.uint8, device=device)
    padded[:rows, :kept] = values.view(torch.uint8)
    places = torch.full((tiles * ROWS, units * UNIT // 8), EMPTY_BYTE, dtype=torch.uint8, device=device)
    places[:rows, : meta.shape[1]] = meta
    out = torch.empty(tiles, units, 4, WARP_UNIT, dtype=torch.uint8, device=device)
    # [tile, warp, row half, g, unit, step, window half, q, byte]
    # -> [tile, unit, warp, step, g, q, window half, row half, byte]
    split = padded.view(tiles, 4, 2, 8, units, 4, 2, 4, 4)
    out[..., :VALUES] = split.permute(0, 4, 1, 5, 3, 7, 6, 2, 8).reshape(tiles, units, 4, VALUES)
    # [tile, warp, row half, g, unit, step, window half, byte] -> [tile, unit, warp, g, q, step, byte]
    words = places.view(tiles, 4, 2, 8, units, 4, 2, 4)
    lanes = torch.stack([words[:, :, high, :, :, :, second] for high, second in META], dim=3)
    out[..., VALUES:] = lanes.permute(0, 4, 1, 2, 3, 5, 6).reshape(tiles, units, 4, WARP_UNIT - VALUES)
    return out


def from_fragments(fragments: Tensor, rows: int, slid: int) -> tuple[Tensor, Tensor]:
    """The inverse, for N = rows and K' = slid: values [N, K'/2] uint8, meta [N, K'/8] uint8."""
    tiles, units = fragments.shape[:2]
    values = fragments[..., :VALUES].reshape(tiles, units, 4, 4, 8, 4, 2, 2, 4)
    # [tile, unit, warp, step, g, q, window half, row half, byte]
    # -> [tile, warp, row half, g, unit, step, window half, q, byte]
    flat = values.permute(0, 2, 7, 4, 1, 3, 6, 5, 8).reshape(tiles * ROWS, units * UNIT // 2)
    lanes = fragments[..., VALUES:].reshape(tiles, units, 4, 8, 4, 4, 4)  # [tile, unit, warp, g, q, step, byte]
    words = torch.empty(tiles, 4, 2, 8, units, 4, 2, 4, dtype=torch.uint8, device=fragments.device)
    for q, (high, second) in enumerate(META):
        words[:, :, high, :, :, :, second] = lanes[:, :, :, :, q].permute(0, 2, 3, 1, 4, 5)
    meta = words.reshape(tiles * ROWS, units * UNIT // 8)
    return flat[:rows, : slid // 2].contiguous(), meta[:rows, : slid // 8].contiguous()
