"""What a 2:L mask loses with the columns in an order, group by group, and the least that any order could lose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray


def lost(weight: NDArray[Any], norms: NDArray[Any], order: NDArray[np.int64], length: int) -> float:
    """The two smallest (w ||X||)² of every row and group of columns order[0 … L - 1], order[L …], all summed. The
    missing columns of the last group are zeros."""
    total = 0.0
    for row in weight:
        for start in range(0, len(order), length):
            scores = [float((row[c] * norms[c]) ** 2) for c in order[start : start + length]]
            total += sum(sorted(scores + [0.0] * (length - len(scores)))[:2])
    return total


def groupings(columns: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """One order for each way to put the columns into groups of L and one of the rest, which comes last."""
    if len(columns) % length:
        for tail in combinations(columns, len(columns) % length):
            for whole in groupings(tuple(c for c in columns if c not in tail), length):
                yield whole + tail
        return
    if not columns:
        yield ()
        return
    first, others = columns[0], columns[1:]
    for beside in combinations(others, length - 1):
        for more in groupings(tuple(c for c in others if c not in beside), length):
            yield (first, *beside, *more)


def read_by(order: NDArray[np.int64], heads: int) -> NDArray[np.int64]:
    """order [key_value_heads, head_dim] -> where each of the heads * head_dim columns of o_proj comes from."""
    count, size = order.shape
    columns = [head * size + int(channel) for head in range(heads) for channel in order[head // (heads // count)]]
    return np.array(columns)
