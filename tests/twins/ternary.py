"""BitNet's ternary weights in plain numpy, number by number: rounding, packing, and the best change of a group."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ternarize(master: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """master [out, in] -> codes, and the scale of all of them: mean |w| in float32, twice inverted."""
    mean = np.float32(np.abs(master.astype(np.float64)).mean())
    inverse = np.float32(1) / max(mean, np.float32(1e-5))
    codes = np.clip(np.rint(master * inverse), -1, 1)  # rint: ties to even
    return codes.astype(np.int8), np.float32(1) / inverse


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """codes [out, in] -> [out/4, in]: row r of the bytes holds rows r, r + out/4, r + out/2 and r + 3 out/4."""
    quarter = len(codes) // 4
    packed = np.zeros((quarter, codes.shape[1]), np.uint8)
    for row in range(len(codes)):
        for column in range(codes.shape[1]):
            packed[row % quarter, column] += (int(codes[row, column]) + 1) * 4 ** (row // quarter)
    return packed


def legal_groups(codes: NDArray[np.int8], length: int) -> int:
    """Groups of `length` columns with two zeros; columns that are missing at the end are zeros."""
    count = 0
    for row in codes:
        for start in range(0, len(row), length):
            group = list(row[start : start + length])
            count += (group + [0] * (length - len(group))).count(0) >= 2
    return count


def loss(codes: Floats, scale: float, target: Floats, gram: Floats, latent: Floats | None, prior: float) -> float:
    """f of descent.py for one row."""
    off = scale * codes - target
    away = 0.0 if latent is None else prior * float(((scale * codes - latent) ** 2).sum())
    return float(off @ gram @ off) + away


def best_change(
    codes: Floats,
    group: slice,
    most: int,
    scale: float,
    target: Floats,
    gram: Floats,
    latent: Floats | None,
    prior: float,
) -> float:
    """The least loss of a row [K] once at most two codes of a group are changed, at most `most` of them non-zero."""
    found = loss(codes, scale, target, gram, latent, prior)
    inside = codes[group]
    for values in product((-1.0, 0.0, 1.0), repeat=len(inside)):
        changed = np.array(values)
        if (changed != inside).sum() > 2 or (changed != 0).sum() > most:
            continue
        tried = codes.copy()
        tried[group] = changed
        found = min(found, loss(tried, scale, target, gram, latent, prior))
    return found
