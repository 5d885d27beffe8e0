"""The dense backend: un-slid codes and torch's own 8-bit products, for GPUs without 2:4 units and where it is faster.

INT8: torch._int_mm, exact, then dequant: the same bits as every other backend. FP8: torch._scaled_mm with a scale
per token and channel and the bias fused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sparse_gemm.kernel import bucket
from .base import Codes, LinearSpec
from .cuda import CudaBackend, indexed, missing_triton

LEAST_ROWS = 32
"""torch._int_mm takes more than 16 rows."""
MULTIPLES = {torch.int8: 8, torch.float8_e4m3fn: 16}
"""What N and K must be multiples of."""
SINCE = {torch.int8: (7, 5), torch.float8_e4m3fn: (8, 9)}


class Dense(CudaBackend):
    """Dense 8-bit products of the library that torch uses."""

    name = "dense"

    def __init__(self, spec: LinearSpec, device: torch.device) -> None:
        super().__init__(spec, indexed(device))

    @classmethod
    def refusal(cls, spec: LinearSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if torch.cuda.get_device_capability(device) < SINCE[spec.dtype]:
            wanted = ".".join(map(str, SINCE[spec.dtype]))
            return (
                f"{torch.cuda.get_device_name(device)} has no 8-bit products of this kind (compute capability {wanted})"
            )
        multiple = MULTIPLES[spec.dtype]
        if spec.rows % multiple or spec.columns % multiple:
            return f"{spec.rows} x {spec.columns} are no multiples of {multiple}"
        return missing_triton()

    def prepare(self, codes: Codes) -> Tensor:
        return codes.dense.to(self.device).contiguous().view(torch.int8)

    def codes(self, operand: Tensor) -> Codes:
        return Codes(self.spec, dense=operand.view(self.spec.dtype))

    def run(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        from ..dequant.kernel import dequant
        from ..quantize.kernel import quantize

        spec, flat = self.spec, x.reshape(-1, self.spec.columns)
        tokens, weight = flat.shape[0], operand.view(spec.dtype)
        if tokens == 0:
            return x.new_empty((*x.shape[:-1], spec.rows))
        if spec.dtype == torch.int8:
            codes, scale = quantize(flat, spec.dtype, max(LEAST_ROWS, bucket(tokens)))
            out = dequant(torch._int_mm(codes, weight.T), scale, weight_scale, bias, x.dtype)
        elif x.dtype == torch.bfloat16:
            codes, scale = quantize(flat, spec.dtype)
            bias = None if bias is None else bias.to(x.dtype)
            out = torch._scaled_mm(codes, weight.T, scale, weight_scale.view(1, -1), bias=bias, out_dtype=x.dtype)
        else:  # scales per token and channel go with bfloat16 outputs only
            codes, scale = quantize(flat, spec.dtype)
            one = torch.ones((), dtype=torch.float32, device=x.device)
            sums = torch._scaled_mm(codes, weight.T, one, one, out_dtype=torch.float32)
            out = dequant(sums, scale, weight_scale, bias, x.dtype)
        return out.view(*x.shape[:-1], spec.rows)
