"""Scales and bias on the sums of a GEMM, the specification; in float32, each operation rounded, then one cast."""

from __future__ import annotations

import torch
from torch import Tensor


def dequant(sums: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums [R, N], scale [M, 1] float32, weight_scale [N] float32, bias [N] or None -> [M, N] of `dtype`, M <= R.

    out = (sums * scale) * weight_scale + bias; rows beyond M are left out.
    """
    out = sums[: scale.shape[0]].float() * scale * weight_scale
    return (out if bias is None else out + bias.float()).to(dtype)
