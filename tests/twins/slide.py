"""Greedy residual assignment and the gather that matches it, one lane after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def window_columns(length: int | None, columns: int) -> list[list[int]]:
    """The input columns that each window covers, those beyond the row included; windows of pure padding have none."""
    if length is None:
        windows = [[start, start + 1] for start in range(0, columns, 2)]
    else:
        windows = [
            list(range(group + first, group + first + 4))
            for group in range(0, columns, length)
            for first in range(0, length - 2, 2)
        ]
    while len(windows) % 8:  # 8 windows are 32 lanes
        windows.append([])
    return windows


def lift_index(length: int | None, columns: int) -> list[int]:
    """The input column of every slid column, -1 where there is none."""
    index = []
    for window in window_columns(length, columns):
        index += [window[lane] if lane < len(window) and window[lane] < columns else -1 for lane in range(4)]
    return index


def slide(weight: NDArray[Any], length: int | None) -> NDArray[Any]:
    """weight [out, in] -> slid [out, K']. ValueError if a non-zero finds no window."""
    rows, columns = weight.shape
    windows = window_columns(length, columns)
    slid = np.zeros((rows, 4 * len(windows)), dtype=weight.dtype)
    for row in range(rows):
        waiting = {int(column) for column in np.flatnonzero(weight[row])}
        for number, window in enumerate(windows):
            taken = 0
            for lane, column in enumerate(window):
                if column in waiting and taken < 2:
                    slid[row, 4 * number + lane] = weight[row, column]
                    waiting.remove(column)
                    taken += 1
        if waiting:
            raise ValueError(f"row {row}: columns {sorted(waiting)} found no window")
    return slid
