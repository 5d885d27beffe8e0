"""2:4 windows as two values and a metadata nibble, one window after the other."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(slid: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """slid [out, K'] -> values [out, K'/2], meta [out, K'/8]: per window the first pair of lanes that holds every
    non-zero. ValueError if no pair does."""
    rows, columns = slid.shape
    values = np.zeros((rows, columns // 2), dtype=slid.dtype)
    meta = np.zeros((rows, columns // 8), dtype=np.uint8)
    for row in range(rows):
        for window in range(columns // 4):
            lanes = slid[row, 4 * window : 4 * window + 4]
            low, high = _pair([lane for lane in range(4) if lanes[lane] != 0])
            values[row, 2 * window : 2 * window + 2] = lanes[low], lanes[high]
            meta[row, window // 2] += (low + 4 * high) * (16 if window % 2 else 1)
    return values, meta


def unpack(values: NDArray[Any], meta: NDArray[np.uint8]) -> NDArray[Any]:
    """values [out, K'/2], meta [out, K'/8] -> slid [out, K']."""
    rows, count = values.shape
    slid = np.zeros((rows, 2 * count), dtype=values.dtype)
    for row in range(rows):
        for window in range(count // 2):
            nibble = int(meta[row, window // 2]) // (16 if window % 2 else 1) % 16
            slid[row, 4 * window + nibble % 4] = values[row, 2 * window]
            slid[row, 4 * window + nibble // 4] = values[row, 2 * window + 1]
    return slid


def _pair(occupied: list[int]) -> tuple[int, int]:
    for pair in combinations(range(4), 2):
        if set(occupied) <= set(pair):
            return pair
    raise ValueError(f"lanes {occupied} are more than two")
