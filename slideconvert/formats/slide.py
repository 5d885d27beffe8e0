"""Re-lay 2:L weights into overlapping 2:4 windows, and the activations' matching gather; both exactly.

Window w of a group covers its columns 2w … 2w+3. Going left to right, a window takes the first two of its
non-zeros that no earlier window took (greedy residual assignment, SlideSparse). What two windows share is
taken once, so lift(x) @ slide(w).T equals x @ w.T term by term, in another order. Worked example, 2:8:

    w      7 -3  5  0 -9  0  4  6
    slid   7 -3  0  0 | 5  0 -9  0 | 0  0  4  6      then empty windows up to a multiple of 32 columns
    x lift 0  1  2  3 | 2  3  4  5 | 4  5  6  7

A weight that finds no window is never dropped: `slide` raises instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.patterns import WINDOW, BlockPattern
from ..errors import PatternError
from ..kernels.planes import bits, from_planes, nonzero, row_blocks, to_planes


def lift_index(pattern: BlockPattern, columns: int) -> Tensor:
    """[K'] int64: the input column that each slid column multiplies; -1 where there is none (padding).

    lift(x)[..., o] = x[..., index[o]], or 0 where index[o] is -1.
    """
    window = torch.arange(pattern.units(columns) * pattern.windows)
    start = window // pattern.windows * pattern.block + window % pattern.windows * 2
    index = start[:, None] + torch.arange(WINDOW)
    if not pattern.prunes:
        index[:, 2:] = -1  # 2:inf: a window holds its own two columns only
    index[index >= columns] = -1
    padded = torch.full((pattern.slid_columns(columns),), -1)
    padded[: index.numel()] = index.flatten()
    return padded


def slide(values: Tensor, pattern: BlockPattern, where: str = "weight") -> Tensor:
    """values [out, in], any dtype, zeros as zero bytes -> slid [out, K'] of the same dtype, 2:4 in every window.

    PatternError if a group has more non-zeros than its windows hold.
    """
    raw = bits(values)
    slid = torch.zeros(values.shape[0], pattern.slid_columns(values.shape[1]), dtype=raw.dtype, device=raw.device)
    for rows in row_blocks(values):
        lanes = from_planes([lane for window in windows(raw, rows, pattern, where) for lane in window])
        slid[rows, : lanes.shape[1]] = lanes
    return slid.view(values.dtype)


def windows(raw: Tensor, rows: slice, pattern: BlockPattern, where: str) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Some rows of raw [out, in] integers -> the four lane planes [rows, groups] of each window of a group.

    PatternError if a non-zero finds no window, which is so exactly where a group has more than L - 2 of them.
    """
    columns = to_planes(raw[rows], pattern.block)
    if not pattern.prunes:
        empty = torch.zeros_like(columns[0])
        return [(columns[0], columns[1], empty, empty)]
    left = [nonzero(column) for column in columns]  # all ones where a non-zero waits for its window
    out = []
    for first in range(0, 2 * pattern.windows, 2):
        a, b, c, d = left[first : first + WINDOW]
        # a and b must be taken now: no later window sees them. c and d take what room they leave.
        both = a & b
        take_c = c & ~both
        take_d = d & ~(both | ((a | b) & c))
        left[first + 2], left[first + 3] = c ^ take_c, d ^ take_d
        lane_a, lane_b, lane_c, lane_d = columns[first : first + WINDOW]
        out.append((lane_a & a, lane_b & b, lane_c & take_c, lane_d & take_d))
    if int((left[-2] | left[-1]).amin()) < 0:
        pattern.check(raw, where)  # says where; the rows before these are in order
        raise PatternError(f"{where}: sliding {pattern} left non-zeros behind", hint="this is a defect: report it")
    return out


def unslide(slid: Tensor, pattern: BlockPattern, columns: int, where: str = "weight") -> Tensor:
    """slid [out, K'] -> values [out, in]: the inverse of `slide`.

    PatternError if a column holds a non-zero in two windows, or padding holds one: not a slid weight.
    """
    if slid.shape[1] != pattern.slid_columns(columns):
        raise PatternError(
            f"{where}: {slid.shape[1]} slid columns, {pattern} of {columns} has {pattern.slid_columns(columns)}"
        )
    raw = bits(slid)
    values = torch.empty(slid.shape[0], columns, dtype=raw.dtype, device=raw.device)
    width = WINDOW * pattern.windows
    used = pattern.units(columns) * width
    for rows in row_blocks(slid):
        block = raw[rows]
        lanes = block[:, :used].reshape(block.shape[0], -1, width).permute(2, 0, 1).contiguous()
        out = [lanes[0], lanes[1]]
        clash = torch.zeros_like(lanes[0])
        for window in range(1, pattern.windows):
            for lane in (0, 1):
                before, after = lanes[4 * window - 2 + lane], lanes[4 * window + lane]
                clash |= nonzero(before) & nonzero(after)
                out.append(before | after)
        if pattern.prunes:
            out += [lanes[-2], lanes[-1]]
        merged = from_planes(out)
        padding = [block[:, used:], merged[:, columns:], *([] if pattern.prunes else [lanes[2:]])]
        stray = any(bool(part.any()) for part in padding)
        clashes = int(clash.amin()) < 0
        if clashes or stray:
            fault = "two windows hold the same input column" if clashes else "padding holds a non-zero"
            raise PatternError(f"{where}: {fault}, rows {rows.start} … {rows.stop - 1}", hint="the file is damaged")
        values[rows] = merged[:, :columns]
    return values.view(slid.dtype)
