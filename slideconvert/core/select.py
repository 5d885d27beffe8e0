"""Applying a keep mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.planes import bits, row_blocks, without_negative_zero


def apply_mask(values: Tensor, keep: Tensor) -> Tensor:
    """Values where kept, +0 elsewhere; a kept -0 becomes +0 as well, so that every zero is all-zero bytes."""
    out = torch.empty_like(values)
    for rows in row_blocks(values):
        out[rows] = without_negative_zero((bits(values[rows]) * keep[rows]).view(values.dtype))
    return out
