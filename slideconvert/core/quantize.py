"""Quantization: codes = round-half-even(w / scale), per output channel (INT8, FP8) or per group of a row.

Per channel, symmetric: scale = absmax / qmax. INT8 codes lie in -127 … 127 (-128 is never used: the grid is
symmetric); FP8 codes are E4M3 values up to 448 in magnitude. The division uses the very float32 scale that is stored,
so |w - code * scale| <= scale / 2 for INT8 (up to float32 rounding), and a zero weight is code +0 in both.

Per group (w4a16 …): s = (max - min) / (2^bits - 1) with min <= 0 <= max, zero point = round(-min / s), both over the
weights of the group that are kept (GQSA, equations 1 to 3; zero is made representable). The scale is rounded up to
bfloat16 first, so that the range always covers the group and |w - code * scale| <= scale / 2. Codes in memory are those
stored minus the zero point: the weight is code * scale in every scheme, and zero is code 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels.planes import row_blocks, without_negative_zero
from ..kernels.sparse_gemm.reference import code_floats
from .schemes import Scheme


@dataclass(frozen=True)
class Grid:
    """What the rows of a weight are rounded to: codes of `scheme` times `scale`.

    scale [out, 1] float32, or [out, in / group] bfloat16 of a grouped scheme. zero [out, in / group] uint8: the stored
    code that means zero; None but for asymmetric schemes.
    """

    scheme: Scheme
    scale: Tensor
    zero: Tensor | None = None

    def by_column(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight, [out, in] float32 both (views of one column where rows share them)."""
        zero = torch.full_like(self.scale, self.scheme.middle) if self.zero is None else self.zero
        scale, zero = self.scale.float(), zero.float()
        if not self.scheme.grouped:
            return scale.expand(-1, columns), zero.expand(-1, columns)
        return scale.repeat_interleave(self.scheme.group, 1), zero.repeat_interleave(self.scheme.group, 1)

    def visited(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight, [in, out] float32 both, columns in this order [in]."""
        scale, zero = self.by_column(len(order))
        return (scale.T[order], zero.T[order]) if self.scheme.grouped else (scale.T, zero.T)

    def round(self, weight: Tensor) -> QuantizedWeight:
        """weight [out, in] float -> its nearest codes. Zeros stay exactly zero."""
        codes = torch.empty(weight.shape, dtype=getattr(torch, self.scheme.dtype), device=weight.device)
        for rows in row_blocks(weight):
            part = self.take_rows(rows)
            in_scales = weight[rows].to(torch.float32, copy=True)  # a copy: the weight is not ours
            if not self.scheme.grouped:
                codes[rows] = to_codes(in_scales.div_(part.scale), self.scheme)
                continue
            scale, zero = part.by_column(weight.shape[1])
            codes[rows] = to_codes(in_scales.div_(scale), self.scheme, zero)
        return QuantizedWeight(codes, self.scale, self.scheme, self.zero)

    def take_rows(self, rows: slice) -> Grid:
        """Of some rows."""
        return replace(self, scale=self.scale[rows], zero=None if self.zero is None else self.zero[rows])


@dataclass(frozen=True)
class QuantizedWeight:
    """codes [out, in] int8, float8_e4m3fn or int16; scale and zero as in Grid (scale in any floating point if it is not
    ours)."""

    codes: Tensor
    scale: Tensor
    scheme: Scheme
    zero: Tensor | None = None

    def dequantize(self) -> Tensor:
        """codes * scale, [out, in] float32."""
        floats = code_floats(self.codes)
        if not self.scheme.grouped:
            return floats.mul_(self.scale.float())
        return floats.unflatten(1, (-1, self.scheme.group)).mul_(self.scale.float()[..., None]).flatten(1)

    def to(self, device: str) -> QuantizedWeight:
        """The same on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return QuantizedWeight(self.codes.to(device), self.scale.to(device), self.scheme, zero)

    @property
    def grid(self) -> Grid:
        return Grid(self.scheme, self.scale, self.zero)


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


def group_grid(weight: Tensor, scheme: Scheme) -> Grid:
    """weight [out, in] float of a grouped scheme -> scale and zero point of each group, from its extremes.

    Groups of zeros get scale 1 and the zero point in the middle. Symmetric: the larger of max / (2^(bits - 1) - 1) and
    -min / 2^(bits - 1), so that no code of the range is left out.
    """
    groups = weight.float().unflatten(1, (-1, scheme.group))
    low, high = groups.amin(2).clamp_(max=0), groups.amax(2).clamp_(min=0)
    if scheme.symmetric:
        above, below = (torch.full_like(high, most) for most in (scheme.middle - 1, scheme.middle))
        scale = torch.maximum(high / above, -low / below)
    else:
        scale = (high - low) / torch.full_like(high, scheme.top)
    empty = high == low
    scale = torch.where(empty, torch.ones_like(scale), scale.clamp_(min=torch.finfo(torch.float32).tiny))
    scale = _up_to_bfloat16(scale)
    if scheme.symmetric:
        return Grid(scheme, scale)
    zero = (-low / scale.float()).round_().clamp_(0, scheme.top)
    return Grid(scheme, scale, torch.where(empty, torch.full_like(zero, scheme.middle), zero).to(torch.uint8))


def _up_to_bfloat16(positive: Tensor) -> Tensor:
    """The smallest bfloat16 that is not below a positive normal float32."""
    nearest = positive.to(torch.bfloat16)
    short = (nearest.float() < positive).to(torch.int16)
    return (nearest.view(torch.int16) + short).view(torch.bfloat16)  # the next bits are the next number


def grid_of(weight: Tensor, scheme: Scheme) -> Grid:
    """weight [out, in] float -> the grid that it spans, per row or per group. InputError for bf16."""
    if not scheme.quantized:
        raise InputError(f"scheme {scheme.name} has no codes", hint="choose int8, fp8 or w4a16")
    return group_grid(weight, scheme) if scheme.grouped else Grid(scheme, channel_scale(weight, scheme))


def quantize(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """weight [out, in] float, finite -> codes and scale. Zeros stay exactly +0. Raises InputError for bf16."""
    return grid_of(weight, scheme).round(weight)


def to_codes(scaled: Tensor, scheme: Scheme, zero: Tensor | None = None) -> Tensor:
    """Weights in units of their scale, float32 -> nearest codes, ties to even, saturating. Overwrites `scaled`.

    zero: of a grouped scheme, the zero points of these weights, float32.
    """
    if scheme.ternary:
        scaled.round_()
    if scheme.grouped:
        assert zero is not None
        codes = scaled.round_().maximum(-zero).minimum(scheme.top - zero)
        return codes.to(getattr(torch, scheme.dtype))
    if scheme.ct_type == "int":
        return scaled.round_().clamp_(-scheme.qmax, scheme.qmax).to(torch.int8)
    # Small negative weights round to -0 (byte 0x80), but sliding tells zeros by their bits.
    return without_negative_zero(scaled.clamp_(-scheme.qmax, scheme.qmax).to(torch.float8_e4m3fn))
