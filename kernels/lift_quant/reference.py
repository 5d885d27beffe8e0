"""Quantize and lift, the specification: the scale is that of the original K columns, then every window's four
columns are gathered. Overlapping windows repeat columns; lanes without a column, and padding, are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantize.reference import pad_rows, quantize
from ..windows import lift_index


def lift_quant(x: Tensor, length: int | None, dtype: torch.dtype, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] floating point, finite -> codes [rows, K'] of `dtype`, scale [M, 1] float32.

    length: L of the pattern, None for 2:inf. rows: M by default; rows beyond M are padding, code 0.
    """
    codes, scale = quantize(x, dtype)
    index = lift_index(x.shape[1], length, x.device)
    lifted = codes.view(torch.int8)[:, index.clamp(min=0)]
    # Multiplied as bytes: float8 has no arithmetic, and padding must be +0.
    return pad_rows((lifted * (index >= 0)).view(dtype), rows), scale
