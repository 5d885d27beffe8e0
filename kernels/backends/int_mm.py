"""torch's own INT8 product, and a pass over its sums for the scales: where that is faster than our fused one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operand import Operand
from ..slide_spec import SlideSpec
from .base import Prepared
from .cuda import missing_triton
from .dense import MULTIPLE, SINCE, DenseCodes

FEWEST_ROWS = 32
"""torch._int_mm takes more than 16 tokens: fewer are padded to this many."""


class IntMm(DenseCodes):
    """quantize, torch._int_mm, dequant. Exact: the same bits as every other backend."""

    name = "int_mm"
    operations = ("quantize", "dequant")

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        if spec.dtype != torch.int8:
            return "it computes INT8 alone"
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if torch.cuda.get_device_capability(device) < SINCE[spec.dtype]:
            return f"{torch.cuda.get_device_name(device)} has no INT8 products (compute capability 7.5)"
        if spec.rows % MULTIPLE or spec.columns % MULTIPLE:
            return f"{spec.rows} x {spec.columns} are no multiples of {MULTIPLE}"
        return missing_triton()

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        # Imported here: Triton may be absent, and then this backend refuses.
        from ..quantize.kernel import quantize

        flat = x.reshape(-1, self.spec.columns)
        codes, scale = quantize(flat, torch.int8, self._rows(flat.shape[0]))
        return self.launch_codes(codes, scale, prepared, bias, x.dtype).view(*x.shape[:-1], self.spec.rows)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return Operand(self.spec.columns, self.spec.dtype), self._rows(tokens)

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        from ..dequant.kernel import dequant

        weight, weight_scale = prepared
        if not scale.shape[0]:
            return torch.empty(0, self.spec.rows, dtype=dtype, device=self.device)
        return dequant(torch._int_mm(codes, weight.T), scale, weight_scale, bias, dtype)

    @staticmethod
    def _rows(tokens: int) -> int:
        return max(FEWEST_ROWS, -(-tokens // 8) * 8)
