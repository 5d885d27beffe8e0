"""Magnitude pruning, one group after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def magnitude(weight: NDArray[Any], length: int) -> NDArray[np.bool_]:
    """weight [out, in], any numbers -> True where it stays: of each group the two smallest |w| go, the lower column
    first among equals. The missing columns of the last group are zeros and may be the ones that go."""
    rows, columns = weight.shape
    keep = np.ones((rows, columns), dtype=bool)
    for row in range(rows):
        for start in range(0, columns, length):
            group = [(abs(float(weight[row, c])) if c < columns else 0.0, c) for c in range(start, start + length)]
            for _, column in sorted(group)[:2]:
                if column < columns:
                    keep[row, column] = False
    return keep
