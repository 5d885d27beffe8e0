"""Column planes and byte masks: the forms in which block-wise work is fast on CPUs and GPUs alike; plain torch.

Pruning and sliding look at the L columns of a block together. Stored by rows those columns are neighbours, which
vector units cannot use. Turned into L planes (plane i holds column i of every block) each step becomes a handful of
element-wise operations over long contiguous arrays.

Conditions are integers of the same width as the data, all ones or all zeros, made with shifts and combined with
& | ~. Comparisons that yield torch.bool, `where` and `masked_fill` run 10 to 100 times slower on a CPU (measured by
benches/bench_elementwise.py), and these are the innermost loops of every conversion and of loading.

Rows are processed in slices that stay in the CPU's cache; the result does not depend on the slicing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Weights processed at a time: about an L2 cache on a CPU, enough to fill a GPU."""


def blocks(rows: int, columns: int, device: str) -> Iterator[slice]:
    """Slices of the rows of a [rows, columns] matrix that hold about BLOCK_WEIGHTS elements each."""
    step = max(1, BLOCK_WEIGHTS.get(torch.device(device).type, 1 << 20) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """`blocks` of a tensor [rows, columns], for the device it is on."""
    return blocks(tensor.shape[0], tensor.shape[1], tensor.device.type)


def to_planes(matrix: Tensor, length: int) -> Tensor:
    """[rows, columns] -> [length, rows, blocks]; missing columns of a ragged last block become zeros."""
    rows, columns = matrix.shape
    missing = -columns % length
    if missing:
        matrix = torch.nn.functional.pad(matrix, (0, missing))
    return matrix.reshape(rows, -1, length).permute(2, 0, 1).contiguous()


def from_planes(planes: Sequence[Tensor]) -> Tensor:
    """Planes of shape [rows, blocks] each -> [rows, blocks * len(planes)]."""
    return torch.stack(list(planes), dim=-1).flatten(1)


def bits(tensor: Tensor) -> Tensor:
    """The same bytes as integers, so that moving values never interprets (or rounds) them."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def negative(integers: Tensor) -> Tensor:
    """Signed integers -> all ones where negative, else 0."""
    return integers >> (8 * integers.element_size() - 1)


def nonzero(integers: Tensor) -> Tensor:
    """Signed integers -> all ones where not zero, else 0."""
    return negative(integers | -integers)


def without_negative_zero(values: Tensor) -> Tensor:
    """Floating-point values with every -0 turned into +0, bit for bit the same otherwise. Integers as they are."""
    if not values.is_floating_point():
        return values
    raw = bits(values)
    return (raw & nonzero(raw & torch.iinfo(raw.dtype).max)).view(values.dtype)
