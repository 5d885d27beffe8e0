"""The backends that any device can run: the specifications, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..dequant.reference import dequant
from ..group_spec import GroupSpec
from ..groups import Weight, decode
from ..lift_quant.reference import lift_quant
from ..operand import Operand
from ..quantize.reference import quantize
from ..slide_spec import SlideSpec, SlideWeight
from ..sparse_gemm.reference import prepare, sparse_gemm
from .base import Backend, Prepared


class Reference(Backend):
    """Runs anywhere."""

    name = "reference"
    form = "reference"

    @classmethod
    def refusal(cls, spec: SlideSpec | GroupSpec, device: torch.device) -> str:
        return ""


class SlideReference(Reference):
    """Lifted activations times slid weights. INT8 sums are exact integers."""

    runs = SlideSpec

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """Slid codes [N, K'] as int8, scale [N]."""
        codes = prepare(weight.slid.to(self.device)).view(torch.int8)
        return codes, weight.scale.detach().to(self.device).view(-1)

    def weight(self, prepared: Prepared) -> SlideWeight:
        codes, scale = prepared
        return SlideWeight(self.spec, scale.view(-1, 1), slid=codes.view(self.spec.dtype))

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        codes, scale = lift_quant(x.reshape(-1, self.spec.columns), self.spec.length, self.spec.dtype)
        return self.run_codes(codes, scale, prepared, bias, x.dtype).view(*x.shape[:-1], self.spec.rows)

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return Operand(self.spec.columns, self.spec.dtype, lifted=True, length=self.spec.length), tokens

    def run_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        weight, weight_scale = prepared
        sums = sparse_gemm(codes[: scale.shape[0]], weight.view(self.spec.dtype), self.spec.rows)
        return dequant(sums, scale, weight_scale, bias, dtype)


class GroupReference(Reference):
    """A product with the dequantized weight [N, K], which is kept beside the stored bytes in the dtype of the
    activations once it has met them (float32 for INT8 activations): 2 or 4 bytes a weight more."""

    runs = GroupSpec

    def __init__(self, spec: GroupSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._dequantized = WeakTensorKeyDictionary()
        """By prepared weight, for as long as that lives."""

    def prepare(self, weight: Weight) -> tuple[Tensor, ...]:
        """All stored tensors as bytes, one after another."""
        decode(weight, self.spec)  # ValueError if it is damaged
        named = weight.named()
        moved = [named[name].detach().to(self.device).contiguous() for name in self.spec.tensors()]
        return (torch.cat([tensor.view(-1).view(torch.uint8) for tensor in moved]),)

    def weight(self, prepared: Prepared) -> Weight:
        named, at = {}, 0
        for name, (shape, dtype) in self.spec.tensors().items():
            size = torch.Size(shape).numel() * dtype.itemsize
            # Cloned: a view as another dtype must begin where its numbers may.
            named[name] = prepared[0][at : at + size].clone().view(dtype).view(shape)
            at += size
        weight: Weight = self.spec.weight(named)
        return weight

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        if self.spec.activation_bits == 16:
            weight = self._weight(prepared, x.dtype)
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        codes, scale = quantize(x.reshape(-1, self.spec.columns), torch.int8)
        out = codes.float() @ self._weight(prepared, torch.float32).T * scale
        return (out if bias is None else out + bias.float()).to(x.dtype).view(*x.shape[:-1], self.spec.rows)

    def _weight(self, prepared: Prepared, dtype: torch.dtype) -> Tensor:
        kept: Tensor | None = self._dequantized.get(prepared[0])
        if kept is None or kept.dtype != dtype:
            codes, scale = decode(self.weight(prepared), self.spec)
            groups = codes.float().view(*scale.shape, self.spec.size) * scale.float()[..., None]
            kept = self._dequantized[prepared[0]] = groups.flatten(1).to(dtype)
        return kept
