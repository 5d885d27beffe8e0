"""The geometry of slide windows, and re-laying weights into them and back; plain torch, exact, any device.

A group of L columns becomes W = L/2 - 1 windows of four lanes at stride two; window w of group g covers columns
g*L + 2w … g*L + 2w + 3. `length` is L, or None for 2:inf, where every pair of columns has a window of its own
(lanes 0, 1). K' = 4 W ceil(K / L), padded with empty windows to a multiple of 32.

    length 8, K = 8      columns 0 1 2 3 | 2 3 4 5 | 4 5 6 7 | padding to K' = 32

Weights are moved as bytes; a zero is the byte 0. Nothing is ever dropped: what does not fit raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WINDOW = 4
SLID_MULTIPLE = 32
EMPTY_BYTE = 0x44
"""weight_meta of two empty windows: positions 0 and 1 in each."""
BLOCK = 1 << 24
"""Weights that are re-laid at a time: bounds the temporaries."""


def group_of(length: int | None) -> tuple[int, int]:
    """L (or None) -> columns and windows of a group."""
    return (length, length // 2 - 1) if length else (2, 1)


def slid_columns(columns: int, length: int | None) -> int:
    """K' of K = `columns`."""
    group, windows = group_of(length)
    used = -(-columns // group) * WINDOW * windows
    return -(-used // SLID_MULTIPLE) * SLID_MULTIPLE


def lift_index(columns: int, length: int | None, device: torch.device | str = "cpu") -> Tensor:
    """[K'] int64: the column of x that each lane multiplies, -1 where there is none."""
    group, windows = group_of(length)
    window = torch.arange(-(-columns // group) * windows, device=device)
    index = (window // windows * group + window % windows * 2)[:, None] + torch.arange(WINDOW, device=device)
    if not length:
        index[:, 2:] = -1
    index[index >= columns] = -1
    return torch.nn.functional.pad(index.flatten(), (0, slid_columns(columns, length) - index.numel()), value=-1)


def slide(codes: Tensor, length: int | None) -> Tensor:
    """codes [N, K] of one byte each -> slid [N, K'], at most two non-zeros in every window.

    Left to right, a window takes the first two of its non-zeros that no window before it took. ValueError if a
    group has more than L - 2 non-zeros.
    """
    rows, columns = codes.shape
    group, windows = group_of(length)
    groups = -(-columns // group)
    slid = torch.zeros(rows, slid_columns(columns, length), dtype=torch.int8, device=codes.device)
    for part in _row_blocks(codes):
        left = torch.nn.functional.pad(codes[part].view(torch.int8), (0, groups * group - columns))
        left = left.reshape(-1, groups, group).clone()
        out = torch.zeros(left.shape[0], groups, windows, WINDOW, dtype=torch.int8, device=codes.device)
        for window in range(windows):
            lanes = left[..., 2 * window : 2 * window + WINDOW]
            waiting = (lanes != 0).to(torch.int8)
            taken = (waiting * (waiting.cumsum(-1, dtype=torch.int8) <= 2)) * lanes
            out[:, :, window, : lanes.shape[-1]] = taken
            lanes -= taken
        if left.any():
            raise ValueError(
                f"rows {part.start} … {part.stop - 1}: a group of {length} has more than {length or 2} - 2 non-zeros"
            )
        slid[part, : groups * windows * WINDOW] = out.flatten(1)
    return slid.view(codes.dtype)


def unslide(slid: Tensor, columns: int, length: int | None) -> Tensor:
    """slid [N, K'] -> codes [N, K], the inverse of `slide`. ValueError if a column stands in two windows."""
    if slid.shape[1] != slid_columns(columns, length):
        raise ValueError(
            f"{slid.shape[1]} slid columns, {columns} columns in groups of {length} have "
            f"{slid_columns(columns, length)}"
        )
    index = lift_index(columns, length, slid.device)
    # One column more than there are: where padding goes, and a weight in it would be missed.
    target = torch.where(index < 0, columns, index)
    codes = torch.empty(slid.shape[0], columns, dtype=torch.int8, device=slid.device)
    for part in _row_blocks(slid):
        block = slid[part].view(torch.int8)
        merged = torch.zeros(block.shape[0], columns + 1, dtype=torch.int8, device=slid.device)
        merged.index_add_(1, target, block)
        kept = (merged[:, :columns] != 0).sum(1)
        if not torch.equal(kept, (block != 0).sum(1)):
            raise ValueError(f"rows {part.start} … {part.stop - 1}: two windows hold one column, or padding a weight")
        codes[part] = merged[:, :columns]
    return codes.view(slid.dtype)


def pack(slid: Tensor) -> tuple[Tensor, Tensor]:
    """slid [N, K'], two non-zeros per window -> values [N, K'/2], meta [N, K'/8] uint8.

    Two values per window in column order and two ascending 2-bit positions; empty places take the lowest lanes
    that keep the order. Two windows share a byte: p0 | p1<<2 | q0<<4 | q1<<6.
    """
    values = torch.empty(slid.shape[0], slid.shape[1] // 2, dtype=torch.int8, device=slid.device)
    meta = torch.empty(slid.shape[0], slid.shape[1] // 8, dtype=torch.uint8, device=slid.device)
    for part in _row_blocks(slid):
        lanes = slid[part].view(torch.int8).reshape(-1, slid.shape[1] // WINDOW, WINDOW)
        b, c, d = ((lanes[..., lane] != 0).to(torch.uint8) for lane in (1, 2, 3))
        low = torch.where(c + d == 2, 2, b & (c | d))
        high = torch.where(d == 1, 3, torch.where(c == 1, 2, 1)).to(torch.uint8)
        positions = torch.stack([low, high], -1)
        values[part] = lanes.gather(-1, positions.long()).flatten(1)
        nibble = (low | high << 2).view(low.shape[0], -1, 2)
        meta[part] = nibble[..., 0] | nibble[..., 1] << 4
    return values.view(slid.dtype), meta


def unpack(values: Tensor, meta: Tensor) -> Tensor:
    """values [N, K'/2], meta [N, K'/8] uint8 -> slid [N, K'], the inverse of `pack`.

    ValueError if shapes disagree, or two positions of a window are not ascending and distinct: it is damaged.
    """
    if meta.dtype != torch.uint8 or values.shape != (meta.shape[0], 4 * meta.shape[1]):
        raise ValueError(f"values {list(values.shape)} and meta {list(meta.shape)} {meta.dtype} do not belong together")
    slid = torch.zeros(values.shape[0], 2 * values.shape[1], dtype=torch.int8, device=values.device)
    for part in _row_blocks(slid):
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=values.device)
        positions = (meta[part][..., None] >> shifts & 3).view(-1, values.shape[1] // 2, 2)
        if not (positions[..., 0] < positions[..., 1]).all():
            row, window = (int(place) for place in (positions[..., 0] >= positions[..., 1]).nonzero()[0])
            raise ValueError(
                f"row {part.start + row}, window {window}: the two positions are not ascending and distinct"
            )
        lanes = slid[part].view(-1, values.shape[1] // 2, WINDOW)
        lanes.scatter_(-1, positions.long(), values[part].view(torch.int8).view(lanes.shape[0], -1, 2))
    return slid.view(values.dtype)


def _row_blocks(matrix: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    for start in range(0, matrix.shape[0], step):
        yield slice(start, min(start + step, matrix.shape[0]))
