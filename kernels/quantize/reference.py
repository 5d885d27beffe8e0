"""Per-token quantization, the specification: scale = absmax / qmax over the row, codes = round-half-even(x / scale).

INT8: qmax 127. FP8 (E4M3): qmax 448. The same scale quantizes and dequantizes, however small the row is; a row
of zeros has scale 1. Arithmetic is float32 whatever x is.
"""

from __future__ import annotations

import torch
from torch import Tensor

QMAX = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize(x: Tensor, dtype: torch.dtype, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] floating point, finite -> codes [rows, K] of `dtype`, scale [M, 1] float32.

    rows: M by default; rows beyond M are padding, code 0.
    """
    qmax = QMAX[dtype]
    floats = x.float()
    absmax = floats.abs().amax(dim=-1, keepdim=True)
    # A tensor as divisor: by a plain number, CUDA multiplies with its reciprocal, which rounds differently.
    scale = (absmax / torch.full_like(absmax, qmax)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(absmax == 0, torch.ones_like(scale), scale)
    scaled = (floats / scale).clamp(-qmax, qmax) + 0.0  # an input of -0 has code +0
    codes = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
    return pad_rows(codes, rows), scale


def pad_rows(codes: Tensor, rows: int | None) -> Tensor:
    """codes [M, columns] -> [rows, columns], what is added being 0."""
    if rows is None or rows == codes.shape[0]:
        return codes
    return torch.nn.functional.pad(codes.view(torch.int8), (0, 0, 0, rows - codes.shape[0])).view(codes.dtype)
