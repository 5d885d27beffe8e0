"""Quantized weights: codes, and the grid of scales and zero points that maps them to values.

Schemes (schemes/) define the codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.planes import row_blocks
from ..kernels.sparse_gemm.reference import code_floats

if TYPE_CHECKING:
    from .schemes import Scheme


@dataclass(frozen=True)
class Grid:
    """The grid to which the rows of a weight are rounded: codes of `scheme` times `scale`.

    scale [out, 1] float32, or [out, in / group] bfloat16 of a scheme with groups. zero [out, in / group] uint8: the
    stored code that means zero; None but for asymmetric groups.
    """

    scheme: Scheme
    scale: Tensor
    zero: Tensor | None = None

    @property
    def _points(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points, float32."""
        scale = self.scale.float()
        middle = torch.full_like(scale, self.scheme.middle)
        return scale, middle if self.zero is None else self.zero.float()

    def by_column(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight, [out, in] float32 both (views of one column where rows share them)."""
        scale, zero = self._points
        return self.scheme.by_column(scale, columns), self.scheme.by_column(zero, columns)

    def by_visit(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight, [in, out] float32 both, columns in this order [in]."""
        scale, zero = self._points
        return self.scheme.by_visit(scale, order), self.scheme.by_visit(zero, order)

    def round(self, weight: Tensor) -> QuantizedWeight:
        """weight [out, in] float -> its nearest codes. Zeros become code 0."""
        codes = torch.empty(weight.shape, dtype=self.scheme.torch_dtype, device=weight.device)
        for rows in row_blocks(weight):
            in_scales = weight[rows].to(torch.float32, copy=True)  # a copy: the weight is not ours
            scale, zero = self.take_rows(rows).by_column(weight.shape[1])
            codes[rows] = self.scheme.to_codes(in_scales.div_(scale), zero)
        return QuantizedWeight(codes, self.scale, self.scheme, self.zero)

    def take_rows(self, rows: slice) -> Grid:
        """The grid of some rows."""
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
        return self.scheme.multiply(code_floats(self.codes), self.scale.float())

    def to(self, device: str) -> QuantizedWeight:
        """The same on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return QuantizedWeight(self.codes.to(device), self.scale.to(device), self.scheme, zero)

    @property
    def grid(self) -> Grid:
        return Grid(self.scheme, self.scale, self.zero)

    def comparable(self) -> Tensor:
        """A matrix [out, in] that orders the weights of a row like their values: codes with one scale, else floats."""
        return self.codes if self.scheme.rows_independent else self.dequantize()

    def permute_rows(self, order: Tensor) -> QuantizedWeight:
        """Rows in another order [out]."""
        zero = None if self.zero is None else self.zero.index_select(0, order)
        codes, scale = self.codes.index_select(0, order), self.scale.index_select(0, order)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def permute_columns(self, order: Tensor) -> Weight:
        """Columns in another order [in]; floats where columns would leave the group that shares their scale."""
        if not self.scheme.rows_independent:
            return self.dequantize().index_select(1, order)
        return replace(self, codes=self.codes.index_select(1, order))


Weight = Tensor | QuantizedWeight
"""A weight [out, in]: floats, or codes with their scale."""
