"""Symmetric 8-bit rounding, one value after the other; FP8 by looking at all 254 finite E4M3 numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_NORMAL = np.float32(2.0**-126)
QMAX = {"int8": np.float32(127), "fp8": np.float32(448)}


def e4m3_value(byte: int) -> float:
    """The number an E4M3 byte stands for: sign, 4 exponent bits (bias 7), 3 mantissa bits, no infinity."""
    exponent, mantissa = byte % 128 // 8, byte % 8
    if byte % 128 == 127:
        return float("nan")
    magnitude = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -magnitude if byte >= 128 else magnitude


FINITE = [byte for byte in range(256) if byte % 128 != 127]
"""The 254 bytes that are finite numbers."""


def nearest_e4m3(value: float) -> int:
    """The byte of the nearest finite E4M3 number, the even mantissa of two equally near; zero is byte 0x00."""
    return min(FINITE, key=lambda byte: (abs(value - e4m3_value(byte)), byte % 2, byte))


def scales(matrix: NDArray[np.float32], scheme: str) -> NDArray[np.float32]:
    """matrix [rows, columns] float32 -> [rows]: absmax / qmax in float32, at least the smallest normal; 1 for zeros."""
    out = np.ones(len(matrix), dtype=np.float32)
    for row, values in enumerate(matrix):
        largest = max(abs(value) for value in values)
        if largest > 0:
            out[row] = max(largest / QMAX[scheme], SMALLEST_NORMAL)
    return out


def quantize(matrix: NDArray[np.float32], scheme: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """matrix [rows, columns] float32 -> codes (int8 numbers, or uint8 E4M3 bytes without a negative zero), scales."""
    scale = scales(matrix, scheme)
    codes = np.zeros(matrix.shape, dtype=np.int8 if scheme == "int8" else np.uint8)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            in_scales = float(value / scale[row])  # one rounding, to float32
            codes[row, column] = _int8(in_scales) if scheme == "int8" else nearest_e4m3(in_scales)
    return codes, scale


def _int8(value: float) -> int:
    """Python rounds halves to even."""
    return max(-127, min(127, round(value)))
