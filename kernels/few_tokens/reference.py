"""Linears of few tokens, the specification: quantize (and lift), multiply, scale.

INT8: the same bits as every other way to run the linear. FP8: sums of exact products, rounded in another order.
"""

from __future__ import annotations

from torch import Tensor

from ..dequant.reference import dequant
from ..lift_quant.reference import lift_quant
from ..slide_spec import SlideWeight
from ..sparse_gemm.reference import sparse_gemm


def few_tokens(x: Tensor, weight: SlideWeight, bias: Tensor | None) -> Tensor:
    """x [M, K] bfloat16, float16 or float32; bias [N] -> [M, N] like x."""
    spec = weight.spec
    codes, scale = lift_quant(x, spec.length, spec.dtype)
    sums = sparse_gemm(codes, weight.slid, spec.rows)
    return dequant(sums, scale, weight.scale.view(-1), bias, x.dtype)
