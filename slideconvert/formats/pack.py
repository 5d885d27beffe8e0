"""2:4 windows <-> their two values and two positions: the bytes that a slide-layout checkpoint stores.

Per window: two values, in column order, and two 2-bit positions, ascending and distinct. Two windows share a
metadata byte, low bits first: p0 | p1 << 2 | q0 << 4 | q1 << 6. A window with fewer than two non-zeros fills
up with its lowest free lanes, whose value is +0, so every slid weight has exactly one packed form:

    slid    5  0 -9  0 | 0  0  0  6          values  5 -9 | 0  6
    positions  0  2    |    0  3             byte    0b1100_1000
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import WINDOW, BlockPattern
from ..errors import PatternError
from ..kernels.planes import bits, from_planes, nonzero, row_blocks, to_planes
from .slide import windows

EMPTY_BYTE = 0x44
"""Metadata of two empty windows: positions 0, 1 and 0, 1."""


def pack(slid: Tensor, where: str = "weight") -> tuple[Tensor, Tensor]:
    """slid [out, K'], K' a multiple of 8, at most two non-zeros a window -> values [out, K'/2] of the same
    dtype and meta [out, K'/8] uint8. PatternError if a window holds more."""
    values, meta = _empty(slid, slid.shape[1])
    raw = bits(slid)
    for rows in row_blocks(raw):
        a, b, c, d = to_planes(raw[rows], WINDOW)
        count = -(nonzero(a) + nonzero(b) + nonzero(c) + nonzero(d))
        if int(count.amax()) > 2:
            row, window = (int(index) for index in (count > 2).nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, slid columns {4 * window} … {4 * window + 3} hold "
                f"{int(count[row, window])} non-zeros",
                hint="only 2:4 windows can be packed",
            )
        _put(values, meta, rows, [pack_window(a, b, c, d)])
    return values.view(slid.dtype), meta


def slide_and_pack(codes: Tensor, pattern: BlockPattern, where: str = "weight") -> tuple[Tensor, Tensor]:
    """The same as pack(slide(codes)), without the slid weight in between, which is twice as large."""
    values, meta = _empty(codes, pattern.slid_columns(codes.shape[1]))
    raw = bits(codes)
    for rows in row_blocks(raw):
        _put(values, meta, rows, [pack_window(*window) for window in windows(raw, rows, pattern, where)])
    return values.view(codes.dtype), meta


def pack_window(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lane planes of windows with at most two non-zeros -> lower value, higher value, metadata nibble (int8)."""
    has_b, has_c, has_d = nonzero(b), nonzero(c), nonzero(d)
    # The lower position is lane 0, unless two non-zeros lie to the right of it.
    low_b, low_c = has_b & (has_c | has_d), has_c & has_d
    low = a | b & low_b | c & low_c
    high = b & ~low_b | c & ~low_c | d
    low_position = low_b & 1 | low_c & 2
    high_position = 1 + (has_c & ~has_d & 1) + (has_d & 2)
    return low, high, (low_position | high_position << 2).to(torch.int8)


def _empty(weights: Tensor, slid_columns: int) -> tuple[Tensor, Tensor]:
    """Packed storage in which every window is empty."""
    rows, dtype = weights.shape[0], bits(weights[:0]).dtype
    values = torch.zeros(rows, slid_columns // 2, dtype=dtype, device=weights.device)
    return values, torch.full((rows, slid_columns // 8), EMPTY_BYTE, dtype=torch.uint8, device=weights.device)


def _put(values: Tensor, meta: Tensor, rows: slice, windows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Store the packed windows of these rows from the left; what follows them stays empty."""
    pairs = from_planes([value for low, high, _ in windows for value in (low, high)])
    values[rows, : pairs.shape[1]] = pairs
    nibbles = from_planes([nibble for _, _, nibble in windows])
    if nibbles.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1), value=EMPTY_BYTE & 15)
    low, high = to_planes(nibbles, 2).view(torch.uint8)
    meta[rows, : low.shape[1]] = low | high << 4


def unpack(values: Tensor, meta: Tensor, where: str = "weight") -> Tensor:
    """values [out, K'/2], meta [out, K'/8] uint8 -> slid [out, K']: the inverse of `pack`.

    PatternError if shapes disagree or two positions of a window are not ascending and distinct.
    """
    if meta.dtype != torch.uint8 or values.shape != (meta.shape[0], 4 * meta.shape[1]):
        raise PatternError(
            f"{where}: values {list(values.shape)} and metadata {list(meta.shape)} {meta.dtype} do not belong together",
            hint="the file is damaged",
        )
    raw = bits(values)
    slid = torch.empty(raw.shape[0], 2 * raw.shape[1], dtype=raw.dtype, device=raw.device)
    for rows in row_blocks(raw):
        low, high = to_planes(raw[rows], 2)
        packed = meta[rows]
        nibbles = from_planes([packed & 15, packed >> 4]).view(torch.int8)
        low_position, high_position = nibbles & 3, nibbles >> 2
        if int((high_position - low_position).amin()) < 1:
            row, window = (int(index) for index in (low_position >= high_position).nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, window {window}: positions {int(low_position[row, window])} and "
                f"{int(high_position[row, window])} are not ascending and distinct",
                hint="the metadata is damaged: convert again",
            )
        lanes = [low & ~nonzero(low_position - lane) | high & ~nonzero(high_position - lane) for lane in range(WINDOW)]
        slid[rows] = from_planes(lanes)
    return slid.view(values.dtype)
