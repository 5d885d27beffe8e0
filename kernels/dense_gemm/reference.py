"""Dense INT8 product with scales and bias, the specification: exact integer sums, then `dequant`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dequant.reference import dequant
from ..sparse_gemm.reference import integer_product


def dense_gemm(
    codes: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """codes [M, K], weight [N, K], int8; scale [M, 1], weight_scale [N] float32; bias [N] -> [M, N] of `dtype`."""
    return dequant(integer_product(codes, weight), scale, weight_scale, bias, dtype)
