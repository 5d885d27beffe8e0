"""Per-token quantization, the specification: scale = absmax / qmax over the row, codes = round-half-even(x / scale).

INT8: qmax 127. FP8 (E4M3): qmax 448. The same scale quantizes and dequantizes, however small the row is; a row
of zeros has scale 1. Arithmetic is float32 whatever x is.
"""

import torch
from torch import Tensor

QMAX = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [..., K] floating point, finite -> codes [..., K] of `dtype`, scale [..., 1] float32."""
    qmax = QMAX[dtype]
    x = x.float()
    absmax = x.abs().amax(dim=-1, keepdim=True)
    # A tensor as divisor: by a plain number, CUDA multiplies with its reciprocal, which rounds differently.
    scale = (absmax / torch.full_like(absmax, qmax)).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(absmax == 0, torch.ones_like(scale), scale)
    scaled = (x / scale).clamp(-qmax, qmax)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale
