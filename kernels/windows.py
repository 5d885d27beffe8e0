"""The geometry of slide windows: weights 2:L <-> overlapping 2:4 windows <-> stored bytes; plain torch, any device.

A block of L columns becomes W = L/2 - 1 windows of four lanes at stride two: window w covers columns 2w … 2w+3 of its
block. From left to right, each window takes the first two of its non-zeros that no earlier window took (the greedy
residual assignment of SlideSparse). What two windows share is taken once, so lift(x) @ slide(w).T equals x @ w.T term
by term, in another order. `length` is L, or None for 2:inf, where every pair of columns has a window of its own (lanes
0 and 1). K' = 4 W ceil(K / L), padded with empty windows to a multiple of 32. Worked example, length 8:

    w            7 -3  5  0 -9  0  4  6
    slid         7 -3  0  0 | 5  0 -9  0 | 0  0  4  6      and five empty windows
    lift_index   0  1  2  3 | 2  3  4  5 | 4  5  6  7      and -1 for the padding

A window is stored as two values, in column order, and two 2-bit positions, ascending and distinct. Two windows share a
metadata byte, low bits first: p0 | p1 << 2 | q0 << 4 | q1 << 6. A window with fewer than two non-zeros fills up with
its lowest free lanes, whose value is 0, so every slid weight has exactly one packed form:

    slid         5  0 -9  0 | 0  0  0  6                   values  5 -9 | 0  6
    positions    0  2       | 0  3                         byte    0b1100_1000

Weights of any dtype are moved as bytes; a zero is all-zero bytes. Nothing is ever dropped: weights that do not fit and
damaged files raise ValueError, with the row and the columns or the window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import bits, from_planes, nonzero, row_blocks, to_planes

WINDOW = 4
SLID_MULTIPLE = 32
EMPTY_BYTE = 0x44
"""Metadata of two empty windows: positions 0 and 1 in each."""

Lanes = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four lanes of one window of every block, as planes [rows, blocks] of integers."""


def group_of(length: int | None) -> tuple[int, int]:
    """L (or None) -> columns and windows of a block."""
    return (length, length // 2 - 1) if length else (2, 1)


def slid_columns(columns: int, length: int | None) -> int:
    """K' of K = `columns`."""
    block, windows = group_of(length)
    used = -(-columns // block) * WINDOW * windows
    return -(-used // SLID_MULTIPLE) * SLID_MULTIPLE


def lift_index(columns: int, length: int | None, device: torch.device | str = "cpu") -> Tensor:
    """[K'] int64: the column of x that each lane multiplies, -1 where there is none.

    lift(x)[..., o] = x[..., index[o]], or 0 where index[o] is -1.
    """
    block, windows = group_of(length)
    window = torch.arange(-(-columns // block) * windows, device=device)
    index = (window // windows * block + window % windows * 2)[:, None] + torch.arange(WINDOW, device=device)
    if not length:
        index[:, 2:] = -1
    index[index >= columns] = -1
    return torch.nn.functional.pad(index.flatten(), (0, slid_columns(columns, length) - index.numel()), value=-1)


def slide(weight: Tensor, length: int | None) -> Tensor:
    """weight [N, K] -> slid [N, K'] of the same dtype, at most two non-zeros in every window.

    ValueError if a block has more than L - 2 non-zeros.
    """
    raw = bits(weight)
    slid = torch.zeros(weight.shape[0], slid_columns(weight.shape[1], length), dtype=raw.dtype, device=raw.device)
    for rows in row_blocks(raw):
        lanes = from_planes([lane for window in _windows(raw, rows, length) for lane in window])
        slid[rows, : lanes.shape[1]] = lanes
    return slid.view(weight.dtype)


def unslide(slid: Tensor, columns: int, length: int | None) -> Tensor:
    """slid [N, K'] -> weight [N, K = columns]: the inverse of `slide`.

    ValueError if K' is wrong, two windows hold the same column, or padding holds a non-zero: not a slid weight.
    """
    if slid.shape[1] != slid_columns(columns, length):
        raise ValueError(
            f"{slid.shape[1]} slid columns, 2:{length or 'inf'} of {columns} has {slid_columns(columns, length)}"
        )
    block, windows = group_of(length)
    raw = bits(slid)
    weight = torch.empty(slid.shape[0], columns, dtype=raw.dtype, device=raw.device)
    used = -(-columns // block) * WINDOW * windows
    for rows in row_blocks(raw):
        lanes = to_planes(raw[rows, :used], WINDOW * windows)
        merged = [lanes[0], lanes[1]]
        clash = torch.zeros_like(lanes[0])
        for lane in range(2, 4 * windows - 2):
            if lane % WINDOW >= 2:  # the same column as lane 0 or 1 of the next window
                clash |= nonzero(lanes[lane]) & nonzero(lanes[lane + 2])
                merged.append(lanes[lane] | lanes[lane + 2])
        if length:
            merged += [lanes[-2], lanes[-1]]
        found = from_planes(merged)
        padding = [raw[rows, used:], found[:, columns:], *([] if length else [lanes[2:]])]
        clashes = int(clash.amin()) < 0
        if clashes or any(bool(part.any()) for part in padding):
            fault = "two windows hold the same input column" if clashes else "padding holds a non-zero"
            raise ValueError(f"{fault}, rows {rows.start} … {rows.stop - 1}")
        weight[rows] = found[:, :columns]
    return weight.view(slid.dtype)


def pack(slid: Tensor) -> tuple[Tensor, Tensor]:
    """slid [N, K'], K' a multiple of 8 -> values [N, K'/2] of the same dtype, meta [N, K'/8] uint8.

    ValueError if a window holds more than two non-zeros.
    """
    raw = bits(slid)
    values, meta = _empty(raw, raw.shape[1])
    for rows in row_blocks(raw):
        a, b, c, d = to_planes(raw[rows], WINDOW)
        count = -(nonzero(a) + nonzero(b) + nonzero(c) + nonzero(d))
        if int(count.amax()) > 2:
            row, window = (int(index) for index in (count > 2).nonzero()[0])
            raise ValueError(
                f"row {rows.start + row}, slid columns {4 * window} … {4 * window + 3} hold "
                f"{int(count[row, window])} non-zeros, a window takes 2"
            )
        _put(values, meta, rows, [_pack_window(a, b, c, d)])
    return values.view(slid.dtype), meta


def slide_and_pack(weight: Tensor, length: int | None) -> tuple[Tensor, Tensor]:
    """The same as pack(slide(weight)), without the slid weight in between, which is up to twice as large."""
    raw = bits(weight)
    values, meta = _empty(raw, slid_columns(raw.shape[1], length))
    for rows in row_blocks(raw):
        _put(values, meta, rows, [_pack_window(*window) for window in _windows(raw, rows, length)])
    return values.view(weight.dtype), meta


def unpack(values: Tensor, meta: Tensor) -> Tensor:
    """values [N, K'/2], meta [N, K'/8] uint8 -> slid [N, K']: the inverse of `pack`.

    ValueError if shapes disagree, or the two positions of a window are not ascending and distinct.
    """
    if meta.dtype != torch.uint8 or values.shape != (meta.shape[0], 4 * meta.shape[1]):
        raise ValueError(
            f"values {list(values.shape)} and metadata {list(meta.shape)} {meta.dtype} do not belong together"
        )
    raw = bits(values)
    slid = torch.empty(raw.shape[0], 2 * raw.shape[1], dtype=raw.dtype, device=raw.device)
    for rows in row_blocks(raw):
        low, high = to_planes(raw[rows], 2)
        nibbles = from_planes([meta[rows] & 15, meta[rows] >> 4]).view(torch.int8)
        # All ones where a bit of a position is set.
        low_1, low_2, high_1, high_2 = (-(nibbles >> bit & 1) for bit in range(4))
        low_0 = ~(low_1 | low_2)
        low_1, low_2 = low_1 & ~low_2, low_2 & ~low_1
        high_1, high_2, high_3 = high_1 & ~high_2, high_2 & ~high_1, high_1 & high_2
        ascending = low_0 & (high_1 | high_2 | high_3) | low_1 & (high_2 | high_3) | low_2 & high_3
        if int(ascending.amax()) == 0:
            row, window = (int(index) for index in (ascending == 0).nonzero()[0])
            nibble = int(nibbles[row, window])
            raise ValueError(
                f"row {rows.start + row}, window {window}: positions {nibble & 3} and {nibble >> 2} are not "
                "ascending and distinct"
            )
        slid[rows] = from_planes([low & low_0, low & low_1 | high & high_1, low & low_2 | high & high_2, high & high_3])
    return slid.view(values.dtype)


def _windows(raw: Tensor, rows: slice, length: int | None) -> list[Lanes]:
    """Some rows of raw [N, K] integers -> the lanes of each window of a block. ValueError as `slide` raises it."""
    block, windows = group_of(length)
    columns = to_planes(raw[rows], block)
    if not length:
        empty = torch.zeros_like(columns[0])
        return [(columns[0], columns[1], empty, empty)]
    left = [nonzero(column) for column in columns]  # all ones where a non-zero waits for its window
    out = []
    for first in range(0, 2 * windows, 2):
        a, b, c, d = left[first : first + WINDOW]
        # a and b must be taken now: no later window covers them. c and d take the room that is left.
        both = a & b
        take_c = c & ~both
        take_d = d & ~(both | ((a | b) & c))
        left[first + 2], left[first + 3] = c ^ take_c, d ^ take_d
        lane_a, lane_b, lane_c, lane_d = columns[first : first + WINDOW]
        out.append((lane_a & a, lane_b & b, lane_c & take_c, lane_d & take_d))
    if int((left[-2] | left[-1]).amin()) < 0:  # exactly where a block has more than L - 2 non-zeros
        count = sum(-nonzero(column).to(torch.int8) for column in columns)
        assert isinstance(count, Tensor)
        row, group = (int(index) for index in (count > length - 2).nonzero()[0])
        raise ValueError(
            f"row {rows.start + row}, columns {group * length} … {min((group + 1) * length, raw.shape[1]) - 1} hold "
            f"{int(count[row, group])} non-zeros, 2:{length} allows {length - 2}"
        )
    return out


def _pack_window(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lanes of windows with at most two non-zeros -> lower value, higher value, metadata nibble (int8)."""
    has_b, has_c, has_d = nonzero(b), nonzero(c), nonzero(d)
    # The lower position is lane 0, unless two non-zeros lie to the right of it.
    low_b, low_c = has_b & (has_c | has_d), has_c & has_d
    low = a | b & low_b | c & low_c
    high = b & ~low_b | c & ~low_c | d
    low_position = low_b & 1 | low_c & 2
    high_position = 1 + (has_c & ~has_d & 1) + (has_d & 2)
    return low, high, (low_position | high_position << 2).to(torch.int8)


def _empty(raw: Tensor, slid: int) -> tuple[Tensor, Tensor]:
    """Packed storage of K' = `slid` in which every window is empty."""
    values = torch.zeros(raw.shape[0], slid // 2, dtype=raw.dtype, device=raw.device)
    return values, torch.full((raw.shape[0], slid // 8), EMPTY_BYTE, dtype=torch.uint8, device=raw.device)


def _put(values: Tensor, meta: Tensor, rows: slice, windows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Store the packed windows of these rows from the left; what follows them stays empty."""
    pairs = from_planes([value for low, high, _ in windows for value in (low, high)])
    values[rows, : pairs.shape[1]] = pairs
    nibbles = from_planes([nibble for _, _, nibble in windows])
    if nibbles.shape[1] % 2:
        nibbles = torch.nn.functional.pad(nibbles, (0, 1), value=EMPTY_BYTE & 15)
    low, high = to_planes(nibbles, 2).view(torch.uint8)
    meta[rows, : low.shape[1]] = low | high << 4
