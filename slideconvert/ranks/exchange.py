"""What ranks divide and what they exchange: sequences and rows by their number, sums, decisions of rank 0.

Number n of anything divided belongs to rank n modulo the number of ranks, whoever asks: so a sequence is trained where
its hidden states are, and stacked linears are divided evenly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from .group import collective, count, first, gate, number


def share(numbers: Tensor) -> tuple[Tensor, float]:
    """numbers [n] int64 -> those that belong to this rank [m], and their weight m / n."""
    if count() == 1:
        return numbers, 1.0
    own = numbers[numbers % count() == number()]
    return own, len(own) / max(1, len(numbers))


def place(numbers: Tensor) -> Tensor:
    """numbers [n] int64 that belong to this rank -> their places among all numbers from 0 that do, [n] int64."""
    return numbers // count()


def own_rows() -> slice:
    """The rows of a matrix that belong to this rank."""
    return slice(number(), None, count())


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place. Every rank gets the same bits.

    Without a gate: it belongs behind one, or where all ranks arrive for certain.
    """
    if count() > 1:
        collective(lambda: dist.all_reduce(tensor))
    return tensor


def sums(*values: float) -> list[float]:
    """The sum of each value over all ranks, in float64."""
    if count() == 1:
        return list(values)
    gate()
    found: list[float] = total(torch.tensor(values, dtype=torch.float64)).tolist()
    return found


def agreed(value: float) -> float:
    """Rank 0's value, which must be finite, on all ranks."""
    return sums(value if first() else 0.0)[0]


def whole(rows: Tensor, rows_of_all: int) -> Tensor:
    """rows [m, ...], this rank's `own_rows` of a tensor with so many rows -> the tensor [rows_of_all, ...]."""
    if count() == 1:
        return rows
    gate()
    sent = rows.new_zeros((-(-rows_of_all // count()), *rows.shape[1:]))
    sent[: len(rows)] = rows
    raw = sent.view(len(sent), -1).view(torch.uint8)  # not every dtype can be sent
    parts = [torch.empty_like(raw) for _ in range(count())]
    collective(lambda: dist.all_gather(parts, raw))
    found = torch.stack(parts, 1).flatten(0, 1)[:rows_of_all].view(rows.dtype)
    return found.view(rows_of_all, *rows.shape[1:])


def given(make: Callable[[], Tensor]) -> Tensor:
    """A matrix int64 in CPU memory that rank 0 makes, on all ranks."""
    if count() == 1:
        return make()
    made = make().contiguous() if first() else torch.empty(0, 0, dtype=torch.int64)
    rows, columns = map(int, sums(*(made.shape if first() else (0, 0))))
    found = made if first() else made.new_empty(rows, columns)
    collective(lambda: dist.broadcast(found, 0))
    return found
