"""The linear of a quantized checkpoint, in plain torch: codes, scales, and activations quantized per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.quantize.reference import quantize
from ..quantize import QuantizedWeight, code_floats


class QuantizedLinear(nn.Module):
    """y = (codes of x) @ codes.T * (scale of x) * weight_scale + bias, as served: activations quantized per token.

    x [..., in] float -> [..., out] of the same dtype. Codes are multiplied as float32 numbers: exact products,
    sums exact while they stay below 2**24 and rounded to float32 beyond.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, quantized: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.dtype = quantized.codes.dtype
        self.register_buffer("weight", code_floats(quantized.codes))
        self.register_buffer("weight_scale", quantized.scale.float().view(-1))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = quantize(x, self.dtype)
        out = nn.functional.linear(codes.float(), self.weight) * scale * self.weight_scale
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"out={self.weight.shape[0]}, in={self.weight.shape[1]}, {self.dtype}"


def float_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """A plain linear holding `weight` [out, in] and `bias` [out] in `dtype`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear
