"""Quantize and lift, the specification: the scale is that of the original K columns, then every window's four
columns are gathered. Overlapping windows repeat columns; lanes without a column, and padding, are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operand import Operand
from ..quantize.reference import quantize


def lift_quant(x: Tensor, length: int | None, dtype: torch.dtype, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] floating point, finite -> codes [rows, K'] of `dtype`, scale [M, 1] float32.

    length: L of the pattern, None for 2:inf. rows: M by default; rows beyond M are padding, code 0.
    """
    codes, scale = quantize(x, dtype)
    operand = Operand(x.shape[1], dtype, lifted=True, length=length)
    return operand.arranged(codes, x.shape[0] if rows is None else rows), scale
