"""Column planes: the memory layout in which group-wise work is fast on CPUs and GPUs alike.

Pruning and sliding look at the L columns of a group together. Stored by rows those columns are neighbours,
and no vector unit likes that. Turned into L planes (plane i holds column i of every group) each step becomes
a handful of element-wise operations over long contiguous arrays. Rows are handled in blocks that stay in
the CPU's cache; a block's result does not depend on the blocking.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Weights handled at a time: about an L2 cache on a CPU, enough to fill a GPU."""


def row_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of rows of a [rows, columns] tensor that hold about BLOCK_WEIGHTS elements each."""
    rows, columns = tensor.shape
    step = max(1, BLOCK_WEIGHTS.get(tensor.device.type, 1 << 20) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def to_planes(matrix: Tensor, group: int) -> Tensor:
    """[rows, columns] -> [group, rows, groups]; missing columns of a ragged last group become zeros."""
    rows, columns = matrix.shape
    missing = -columns % group
    if missing:
        matrix = torch.nn.functional.pad(matrix, (0, missing))
    return matrix.view(rows, -1, group).permute(2, 0, 1).contiguous()


def from_planes(planes: list[Tensor], columns: int) -> Tensor:
    """Planes of shape [rows, groups] each -> [rows, columns]; what lies past `columns` is cut off."""
    rows = planes[0].shape[0]
    return torch.stack(planes, dim=-1).view(rows, -1)[:, :columns]


def bits(tensor: Tensor) -> Tensor:
    """The same bytes as integers, so that moving values about never interprets (or rounds) them."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
