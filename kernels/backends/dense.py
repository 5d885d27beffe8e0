"""The dense backend: un-slid codes and dense 8-bit products, for GPUs without 2:4 units and where it is faster.

INT8: our own product in Triton with the scales fused, exact: the same bits as every other backend. FP8:
torch._scaled_mm, with a scale per token and channel and the bias fused where the output is bfloat16.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..launch import aligned, stream_of
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from .base import Dtypes, Prepared
from .cuda import CudaBackend, missing_triton
from .rule import BUCKETS

MULTIPLE = 16
"""What K must be a multiple of, and N for FP8."""
SINCE = {torch.int8: (7, 5), torch.float8_e4m3fn: (8, 9)}


class DenseCodes(CudaBackend):
    """What reads codes [N, K] in rows, as int8, and the scale [N]: those of dense checkpoints and of stock kernels."""

    runs = SlideSpec
    form = "dense"

    @classmethod
    def timed_as(cls, spec: SlideSpec) -> str:
        return str(replace(spec, length=None))  # zeros take as long as other codes

    @property
    def nbytes(self) -> int:
        return int(self.spec.rows * self.spec.columns)

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """Codes [N, K] as int8, scale [N]."""
        codes = weight.dense.to(self.device).contiguous().view(torch.int8)
        return codes, weight.scale.detach().to(self.device).view(-1)

    def weight(self, prepared: Prepared) -> SlideWeight:
        codes, scale = prepared
        return SlideWeight(self.spec, scale.view(-1, 1), dense=codes.view(self.spec.dtype))


class Dense(DenseCodes):
    """Dense 8-bit products."""

    name = "dense"
    operations = ("quantize", "dense_gemm", "dequant")

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._calls: dict[tuple[torch.dtype, torch.dtype | None], _Call] = {}

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        if torch.cuda.get_device_capability(device) < SINCE[spec.dtype]:
            wanted = ".".join(map(str, SINCE[spec.dtype]))
            return (
                f"{torch.cuda.get_device_name(device)} has no 8-bit products of this kind (compute capability {wanted})"
            )
        rows = 0 if spec.dtype == torch.int8 else spec.rows
        if rows % MULTIPLE or spec.columns % MULTIPLE:
            return f"{spec.rows} x {spec.columns} are no multiples of {MULTIPLE}"
        return missing_triton()

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        if self.spec.dtype != torch.int8:
            return
        from ..dense_gemm.kernel import gemm_for

        with torch.cuda.device(self.device):
            gemm = gemm_for(self.spec.rows, self.spec.columns, None, torch.bfloat16, self.device)
            for tokens in BUCKETS:
                gemm.tile(tokens, aligned(prepared[0]).data_ptr())

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return Operand(self.spec.columns, self.spec.dtype), tokens

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        x, tokens = aligned(x), x.numel() // self.spec.columns
        codes = torch.empty((tokens, self.spec.columns), dtype=self.spec.dtype, device=self.device)
        scale = torch.empty((tokens, 1), dtype=torch.float32, device=self.device)
        if tokens:
            quantize = self._call(x.dtype, bias).quantize
            stream = stream_of(self.device)
            quantize.start(x.data_ptr(), codes.data_ptr(), scale.data_ptr(), tokens, tokens, stream)
        return self.launch_codes(codes, scale, prepared, bias, x.dtype).view(*x.shape[:-1], self.spec.rows)

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        weight, weight_scale = prepared
        spec, tokens = self.spec, scale.shape[0]
        out = torch.empty((tokens, spec.rows), dtype=dtype, device=self.device)
        if tokens == 0:
            return out
        weight_scale, bias = aligned(weight_scale), None if bias is None else aligned(bias)
        call, stream, channel = self._call(dtype, bias), stream_of(self.device), weight_scale.data_ptr()
        term = channel if bias is None else bias.data_ptr()
        if call.int8 is not None:
            pointers = (codes.data_ptr(), weight.data_ptr(), scale.data_ptr(), channel, term, out.data_ptr())
            call.int8.start(pointers, tokens, stream)
            return out
        dense = weight.view(spec.dtype).T
        if dtype == torch.bfloat16 and (bias is None or bias.dtype == dtype):
            # Only this output dtype takes scales per token and channel. Fast accumulation is a fifth faster, and loses
            # less than rounding to bfloat16 does.
            by_channel = weight_scale.view(1, -1)
            return torch._scaled_mm(codes, dense, scale, by_channel, bias, out_dtype=dtype, use_fast_accum=True)
        sums = torch._scaled_mm(codes, dense, call.one, call.one, out_dtype=torch.float32)
        call.dequant.start(sums.data_ptr(), scale.data_ptr(), channel, term, out.data_ptr(), tokens, stream)
        return out

    def _call(self, dtype: torch.dtype, bias: Tensor | None) -> _Call:
        kinds = (dtype, None if bias is None else bias.dtype)
        call = self._calls.get(kinds)
        if call is None:
            call = self._calls[kinds] = _Call(self.spec, *kinds, self.device)
        return call


class _Call:
    """The compiled kernels for activations and biases of one kind."""

    def __init__(self, spec: SlideSpec, dtype: torch.dtype, bias: torch.dtype | None, device: torch.device) -> None:
        # Imported here: Triton may be absent, and then this backend refuses.
        from ..dense_gemm.kernel import gemm_for
        from ..dequant.kernel import Dequant
        from ..quantize.kernel import Quantize

        x, exact = torch.empty(16, dtype=dtype, device=device), spec.dtype == torch.int8
        self.quantize = Quantize(spec.columns, spec.dtype, x)
        self.int8 = gemm_for(spec.rows, spec.columns, bias, dtype, device) if exact else None
        self.dequant = Dequant(spec.rows, spec.rows, torch.float32, bias, x)
        self.one = torch.ones((), dtype=torch.float32, device=device)
