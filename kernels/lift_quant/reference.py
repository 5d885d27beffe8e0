"""Quantize and lift, the specification: the scale is that of the original K columns, then every window's four
columns are gathered. Overlapping windows repeat columns; padding lanes are 0.
"""

import torch
from torch import Tensor

from ..quantize.reference import quantize


def lift_quant(x: Tensor, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., K] -> codes [..., K'] of `dtype`, scale [..., 1] float32.

    index [K'] int64: the column of x that each lifted column repeats, -1 for padding.
    """
    codes, scale = quantize(x, dtype)
    lifted = codes[..., index.clamp(min=0)]
    # Copied as bytes: float8 has no arithmetic, and padding must be +0.
    return (lifted.view(torch.int8) * (index >= 0)).view(dtype), scale
