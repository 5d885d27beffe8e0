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

from .errors import PatternError
from .patterns import WINDOW
from .planes import bits, row_blocks, to_planes

EMPTY_BYTE = 0x44
"""Metadata of two empty windows: positions 0, 1 and 0, 1."""


def pack(slid: Tensor, where: str = "weight") -> tuple[Tensor, Tensor]:
    """slid [out, K'], K' a multiple of 8, at most two non-zeros a window -> values [out, K'/2] of the same
    dtype and meta [out, K'/8] uint8. PatternError if a window holds more."""
    raw = bits(slid)
    rows_total, columns = raw.shape
    values = torch.empty(rows_total, columns // 2, dtype=raw.dtype, device=raw.device)
    meta = torch.empty(rows_total, columns // 8, dtype=torch.uint8, device=raw.device)
    for rows in row_blocks(raw):
        lanes = to_planes(raw[rows], WINDOW)
        a, b, c, d = lanes
        has_b, has_c, has_d = b != 0, c != 0, d != 0
        over = ((a != 0) & has_b & (has_c | has_d)) | (((a != 0) | has_b) & has_c & has_d)
        if over.any():
            row, window = (int(index) for index in over.nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, slid columns {4 * window} … {4 * window + 3} hold more than two "
                "non-zeros",
                hint="only 2:4 windows can be packed",
            )
        # Value 0 is the lower of the two positions: a, unless two non-zeros lie to the right of it.
        low_b, low_c = has_b & (has_c | has_d), has_c & has_d
        low = a | b * low_b | c * low_c
        high = b * ~(has_c | has_d) | c * ~has_d | d
        values[rows] = torch.stack((low, high), dim=-1).flatten(1)
        byte = torch.uint8
        low_position = low_b.to(byte) | (low_c.to(byte) << 1)
        high_position = torch.where(has_d, 3, has_c.to(byte) + 1).to(byte)
        window_bits = (low_position | (high_position << 2)).view(-1, 2)
        meta[rows] = (window_bits[:, 0] | (window_bits[:, 1] << 4)).view(-1, columns // 8)
    return values.view(slid.dtype), meta


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
        windows = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
        low_position, high_position = windows & 3, windows >> 2
        wrong = low_position >= high_position
        if wrong.any():
            row, window = (int(index) for index in wrong.nonzero()[0])
            raise PatternError(
                f"{where}: row {rows.start + row}, window {window}: positions {int(low_position[row, window])} and "
                f"{int(high_position[row, window])} are not ascending and distinct",
                hint="the metadata is damaged: convert again",
            )
        lanes = [low * (low_position == lane) | high * (high_position == lane) for lane in range(WINDOW)]
        slid[rows] = torch.stack(lanes, dim=-1).flatten(1)
    return slid.view(values.dtype)
