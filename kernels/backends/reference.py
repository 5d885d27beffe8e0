"""The backend that any device can run: the specifications, one after another. INT8 sums are exact integers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dequant.reference import dequant
from ..lift_quant.reference import lift_quant
from ..sparse_gemm.reference import prepare, sparse_gemm
from .base import Backend, Codes, LinearSpec


class Reference(Backend):
    """Lifted activations times slid weights, in plain torch."""

    name = "reference"

    @classmethod
    def refusal(cls, spec: LinearSpec, device: torch.device) -> str:
        return ""

    def prepare(self, codes: Codes) -> Tensor:
        return prepare(codes.slid.to(self.device)).view(torch.int8)

    def codes(self, operand: Tensor) -> Codes:
        return Codes(self.spec, slid=operand.view(self.spec.dtype))

    def __call__(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        spec = self.spec
        codes, scale = lift_quant(x.reshape(-1, spec.columns), spec.length, spec.dtype)
        sums = sparse_gemm(codes, operand.view(spec.dtype), spec.rows)
        return dequant(sums, scale, weight_scale.view(-1), bias, x.dtype).view(*x.shape[:-1], spec.rows)
