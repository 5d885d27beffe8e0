"""The sparse backend: lift_quant, cuSPARSELt, dequant; three launches, two allocations, nothing looked up twice."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from ..launch import ALIGNMENT, aligned, stream_of
from ..sparse_gemm import kernel as gemm
from ..sparse_gemm import library
from . import native
from .base import Codes, LinearSpec
from .cuda import CudaBackend, indexed, missing_triton

SPARSE_SINCE = {torch.int8: (8, 0), torch.float8_e4m3fn: (8, 9)}
"""Compute capability from which GPUs have 2:4 units for these codes."""


class Cusparselt(CudaBackend):
    """Slid weights on the 2:4 units, through NVIDIA's library."""

    name = "cusparselt"

    def __init__(self, spec: LinearSpec, device: torch.device) -> None:
        super().__init__(spec, indexed(device))
        self._calls: dict[tuple[int, torch.dtype, torch.dtype | None], _Call] = {}

    @classmethod
    def refusal(cls, spec: LinearSpec, device: torch.device) -> str:
        if device.type != "cuda":
            return f"it needs a CUDA device, not {device.type}"
        capability = torch.cuda.get_device_capability(device)
        if capability < SPARSE_SINCE[spec.dtype]:
            wanted = ".".join(map(str, SPARSE_SINCE[spec.dtype]))
            return (
                f"{torch.cuda.get_device_name(device)} has no 2:4 units for these numbers (compute capability {wanted})"
            )
        try:
            library.load()
        except library.LibraryError as error:
            return str(error)
        return missing_triton()

    def prepare(self, codes: Codes) -> Tensor:
        return gemm.prepare(codes.slid.to(self.device))

    def codes(self, operand: Tensor) -> Codes:
        """By multiplying: each lane of the slid weight is what a token of that one lane sums to."""
        slid = torch.empty(self.spec.rows, self.spec.slid, dtype=self.spec.dtype, device=operand.device)
        step = min(self.spec.slid, 1024)
        for first in range(0, self.spec.slid, step):
            lanes = torch.zeros(step, self.spec.slid, dtype=torch.float32, device=operand.device)
            count = min(step, self.spec.slid - first)
            lanes[:count, first : first + count].fill_diagonal_(1.0)
            sums = gemm.sparse_gemm(lanes.to(self.spec.dtype), operand, self.spec.rows)
            slid[:, first : first + count] = sums[:count].T.to(self.spec.dtype)
        return Codes(self.spec, slid=slid)

    def run(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        tokens = x.numel() // self.spec.columns
        out = x.new_empty((*x.shape[:-1], self.spec.rows))
        if tokens == 0:
            return out
        scale, term = weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr()
        if (x.data_ptr() | scale | term) % ALIGNMENT or not x.is_contiguous():
            return self.run(aligned(x), operand, aligned(weight_scale), None if bias is None else aligned(bias))
        key = (gemm.bucket(tokens), x.dtype, None if bias is None else bias.dtype)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(self, key, tokens, x, operand, bias)
        scratch = torch.empty(call.bytes, dtype=torch.uint8, device=self.device)
        call.start(
            tokens, x.data_ptr(), scratch.data_ptr(), operand.data_ptr(), scale, term or scale, out.data_ptr(),
            stream_of(self.device),
        )  # fmt: skip
        return out


class _Call:
    """Everything about calls of one bucket that can be settled before: kernels, plan, and places in the scratch.

    start(tokens, x, scratch, operand, weight_scale, bias, out, stream): all addresses. The scratch holds codes,
    scales, sums and the library's workspace, in this order.
    """

    def __init__(
        self, backend: Cusparselt, key: tuple[int, torch.dtype, torch.dtype | None], tokens: int, x: Tensor,
        operand: Tensor, bias: Tensor | None,
    ) -> None:  # fmt: skip
        # Imported here: Triton may be absent, and then this backend refuses.
        from ..dequant.kernel import Dequant
        from ..lift_quant.kernel import LiftQuant

        spec, out = backend.spec, gemm.sums_dtype(backend.spec.dtype, x.dtype)
        sparse = gemm.gemm_for(backend.device, spec.rows, spec.slid, spec.dtype, out)
        self.rows = key[0]
        self.plan = sparse.plan(tokens, operand)
        self.lift = LiftQuant(spec.columns, spec.length, spec.dtype, x)
        self.dequant = Dequant(spec.rows, sparse.width, out, None if bias is None else bias.dtype, x)
        sizes = (self.rows * spec.slid, self.rows * 4, self.rows * sparse.width * out.itemsize, self.plan.workspace)
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + -(-size // 256) * 256)
        self.scale, self.sums, self.workspace, self.bytes = ends[1:]
        self.start = self._start_from_c() or self._start_from_python

    def _start_from_c(self) -> Callable[..., None] | None:
        """native.c's one call, if it can be built."""
        function = native.entry()
        if function is None:
            return None
        matmul, handle, plan = self.plan.addresses
        lift, dequant = self.lift.kernel, self.dequant.kernel
        settled = native.Settled(
            native.launch_address(), matmul, handle, plan, lift.function, dequant.function, self.scale, self.sums,
            self.workspace, self.rows, 32 * lift.metadata.num_warps, lift.metadata.shared,
            32 * dequant.metadata.num_warps, dequant.metadata.shared, self.dequant.tokens, self.dequant.blocks,
        )  # fmt: skip
        address = ctypes.addressof(settled)

        def start(*arguments: int) -> None:
            status = function(address, *arguments)
            if status:
                raise RuntimeError(f"a sparse linear of {self.rows} rows failed with status {status} (see native.c)")

        start.keeps = settled  # type: ignore[attr-defined]
        return start

    def _start_from_python(
        self, tokens: int, x: int, scratch: int, operand: int, weight_scale: int, bias: int, out: int, stream: int
    ) -> None:
        scale, sums = scratch + self.scale, scratch + self.sums
        self.lift.start(x, scratch, scale, tokens, self.rows, stream)
        self.plan.run(operand, scratch, sums, scratch + self.workspace, stream)
        self.dequant.start(sums, scale, weight_scale, bias, out, tokens, stream)
