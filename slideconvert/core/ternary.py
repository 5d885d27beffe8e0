"""Ternary weights, as BitNet b1.58 trains and runs them: -1, 0 or 1 times one scale (arXiv 2402.17764, section 2).

A checkpoint stores them in one of three forms, which are all decoded to codes with a scale per row:

    latent           the trained floats: codes = clamp(round-half-even(w / mean |w|), -1, 1), per tensor
    packed           [out/4, in] uint8, four codes a byte, and one scale; row n lies in bits 2 (n div out/4) of byte row
                     n mod (out/4), plus one. `packed` multiplies by its scale, `packed-inverse` divides (older models)
    floats           our form for scheme bf16: code times scale of the row
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.planes import row_blocks
from .quantize import QuantizedWeight
from .schemes import INT8

LATENT, PACKED, PACKED_INVERSE, FLOATS = "latent", "packed", "packed-inverse", "floats"
PER_BYTE = 4
LEAST_MEAN = 1e-5
"""Lower limit of mean |w| in the scale, as in BitNet's own code."""


def ternarize(latent: Tensor) -> QuantizedWeight:
    """latent [out, in] float -> codes [out, in] int8 of -1, 0, 1 and scale [out, 1] float32, the same in every row.

    As transformers' WeightQuant computes it: s = 1 / max(mean |w|, 1e-5) in float32, codes = clamp(round(w · s), -1,
    1), and 1 / s as the scale. The mean alone is summed in float64, so that every device gets the same.
    """
    total = sum(float(latent[rows].abs().sum(dtype=torch.float64)) for rows in row_blocks(latent))
    mean = torch.tensor(total / latent.numel(), dtype=torch.float32).clamp(min=LEAST_MEAN)
    inverse = mean.reciprocal().to(latent.device)
    codes = torch.empty(latent.shape, dtype=torch.int8, device=latent.device)
    for rows in row_blocks(latent):
        scaled = latent[rows].to(torch.float32, copy=True).mul_(inverse)  # a copy: the caller keeps the latent weights
        codes[rows] = scaled.round_().clamp_(-1, 1).to(torch.int8)
    scale = inverse.reciprocal().expand(len(latent), 1).clone()
    return QuantizedWeight(codes, scale, INT8.as_ternary)


def unpack_ternary(packed: Tensor) -> Tensor:
    """packed [out/4, in] uint8 -> codes [out, in] int8. The invalid pair of bits 3 becomes 2."""
    return torch.cat([((packed >> 2 * place & 3).to(torch.int8) - 1) for place in range(PER_BYTE)])


def decode_ternary(coding: str, stored: Tensor, scale: Tensor | None) -> QuantizedWeight:
    """A ternary weight from its stored form: whole for latent weights and packed codes, any rows of floats.

    scale: of packed codes, one element.
    """
    if coding == LATENT:
        return ternarize(stored)
    if coding == FLOATS:
        rows = stored.float()
        return INT8.as_ternary.quantize(rows)
    assert scale is not None
    codes = unpack_ternary(stored)
    one = scale.float().reciprocal() if coding == PACKED_INVERSE else scale.float()
    return QuantizedWeight(codes, one.view(1, 1).expand(len(codes), 1).clone(), INT8.as_ternary)
