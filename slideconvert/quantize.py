"""Symmetric 8-bit quantization per output channel: scale = absmax / qmax, codes = round-half-even(w / scale).

INT8 codes lie in -127 … 127 (-128 is never used: the grid is symmetric); FP8 codes are E4M3 values up to
448 in magnitude. The division uses the very float32 scale that is stored, so |w - code * scale| <= scale / 2
for INT8 (up to float32 rounding), and a zero weight is code +0 in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .kernels.sparse_gemm.reference import code_floats
from .planes import row_blocks, without_negative_zero
from .schemes import Scheme


@dataclass(frozen=True)
class QuantizedWeight:
    """codes [out, in] int8 or float8_e4m3fn; scale [out, 1] floating point (float32 when it is ours)."""

    codes: Tensor
    scale: Tensor
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """codes * scale, [out, in] float32."""
        return code_floats(self.codes).mul_(self.scale.float())

    def to(self, device: str) -> QuantizedWeight:
        """The same on another device."""
        return QuantizedWeight(self.codes.to(device), self.scale.to(device), self.scheme)


Weight = Tensor | QuantizedWeight
"""A weight [out, in]: floats, or codes with their scale."""


def channel_scale(weight: Tensor, scheme: Scheme) -> Tensor:
    """weight [out, in] float -> scale [out, 1] float32 = absmax / qmax.

    A row of zeros gets scale 1. Rows so small that absmax / qmax is no normal float32 get the smallest
    normal one, and their codes use less than the full range: quantizing and dequantizing share the scale,
    whatever it is.
    """
    absmax = weight.abs().amax(dim=1, keepdim=True).float()
    # A tensor as divisor: by a plain number, CUDA multiplies with its reciprocal, which rounds differently.
    scale = absmax.div(torch.full_like(absmax, scheme.qmax)).clamp_(min=torch.finfo(torch.float32).tiny)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def quantize(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """weight [out, in] float, finite -> codes and scale. Zeros stay exactly +0. Raises InputError for bf16."""
    if not scheme.quantized:
        raise InputError(f"scheme {scheme.name} has no codes", hint="choose int8 or fp8")
    scale = channel_scale(weight, scheme)
    codes = torch.empty(weight.shape, dtype=getattr(torch, scheme.dtype), device=weight.device)
    for rows in row_blocks(weight):
        in_scales = weight[rows].to(torch.float32, copy=True).div_(scale[rows])  # a copy: the weight is not ours
        codes[rows] = to_codes(in_scales, scheme)
    return QuantizedWeight(codes, scale, scheme)


def to_codes(scaled: Tensor, scheme: Scheme) -> Tensor:
    """Weights in units of their scale, float32 -> nearest codes, ties to even, saturating. Overwrites `scaled`."""
    if scheme.ternary:
        scaled.round_()
    if scheme.ct_type == "int":
        return scaled.round_().clamp_(-scheme.qmax, scheme.qmax).to(torch.int8)
    # Small negative weights round to -0 (byte 0x80), but sliding tells zeros by their bits.
    return without_negative_zero(scaled.clamp_(-scheme.qmax, scheme.qmax).to(torch.float8_e4m3fn))
