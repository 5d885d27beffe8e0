"""INT8 and FP8: symmetric codes with one float32 scale per output channel.

scale = absmax / qmax, and activations are quantized per token by the same rule when the model runs. Symmetric, so that
a pruned code means exactly zero. The scale stays float32: bfloat16 would move every weight of a row by up to 0.4 %.
Ternary weights use the codes -1, 0 and 1 alone, scale = their magnitude.

INT8 codes lie in -127 … 127 (-128 is never used: the grid is symmetric); FP8 codes are E4M3 values up to 448 in
magnitude. The division uses the very float32 scale that is stored, so |w - code * scale| <= scale / 2 for INT8 (up to
float32 rounding), and a zero weight is code +0 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...kernels.planes import bits, without_negative_zero
from .. import choices
from ..quantize import Grid
from .base import Scheme


@dataclass(frozen=True)
class ChannelScheme(Scheme):
    """One scale per output channel."""

    scale_unit: ClassVar[str] = "output channel"
    largest: ClassVar[float]
    """Magnitude of the largest code."""

    @property
    def qmax(self) -> float:
        """Magnitude of the largest code in use: scale = absmax / qmax."""
        return 1.0 if self.ternary else self.largest

    def grid(self, weight: Tensor) -> Grid:
        """weight [out, in] float -> scale [out, 1] float32 = absmax / qmax.

        A row of zeros gets scale 1. Rows so small that absmax / qmax is no normal float32 get the smallest normal one,
        and their codes use less than the full range: quantizing and dequantizing share the scale, whatever it is.
        """
        absmax = weight.abs().amax(dim=1, keepdim=True).float()
        # A tensor as divisor: by a plain number, CUDA multiplies with its reciprocal, which rounds differently.
        scale = absmax.div(torch.full_like(absmax, self.qmax)).clamp_(min=torch.finfo(torch.float32).tiny)
        return Grid(self, torch.where(absmax == 0, torch.ones_like(scale), scale))


@dataclass(frozen=True)
class Int8Scheme(ChannelScheme):
    """Integers from -127 to 127."""

    ct_type: ClassVar[str] = "int"
    ct_format: ClassVar[str] = "int-quantized"
    largest: ClassVar[float] = 127.0

    def to_codes(self, scaled: Tensor, zero: Tensor | None = None) -> Tensor:
        return self.nearest(scaled).to(torch.int8)

    def nearest(self, scaled: Tensor) -> Tensor:
        return scaled.round_().clamp_(-self.qmax, self.qmax)


@dataclass(frozen=True)
class Fp8Scheme(ChannelScheme):
    """E4M3 floats up to 448."""

    ct_type: ClassVar[str] = "float"
    ct_format: ClassVar[str] = "float-quantized"
    largest: ClassVar[float] = 448.0

    def to_codes(self, scaled: Tensor, zero: Tensor | None = None) -> Tensor:
        if self.ternary:
            scaled.round_()
        # Small negative weights round to -0 (byte 0x80), but sliding tells zeros by their bits.
        return without_negative_zero(scaled.clamp_(-self.qmax, self.qmax).to(torch.float8_e4m3fn))

    def rounding_error(self, values: Tensor, scale: Tensor) -> Tensor:
        # Three mantissa bits: half a step is at most 2**-4 of the value, and 2**-10 among the subnormals.
        return torch.maximum(values.abs() * 2**-4, scale * 2**-10)

    def check_codes(self, codes: Tensor, where: str) -> None:
        super().check_codes(codes, where)
        if int(bits(codes).amin()) == -128:
            raise InputError(f"{where}: a zero is stored as -0 (byte 0x80)")


INT8 = Int8Scheme(choices.INT8, "int8", 8)
FP8 = Fp8Scheme(choices.FP8, "float8_e4m3fn", 8)
