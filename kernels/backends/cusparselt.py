"""The sparse backend: lift_quant, cuSPARSELt, dequant; three launches from one call, nothing looked up twice."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..launch import ALIGNMENT, aligned, stream_of
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from ..sparse_gemm import kernel as gemm
from ..sparse_gemm import library
from . import native
from .base import Dtypes, Prepared
from .cuda import CudaBackend, missing_triton
from .rule import BUCKETS

SPARSE_SINCE = {torch.int8: (8, 0), torch.float8_e4m3fn: (8, 9)}
"""Compute capability from which GPUs have 2:4 units for these codes."""


KEPT_SCRATCH = 64 << 20
"""Bytes of scratch that are kept for each CUDA stream; calls that need more get theirs from torch's allocator."""
MOST_CALLS = 4096
"""Numbers of tokens whose calls are remembered for a shape."""
_Key = tuple[int, torch.dtype, torch.dtype | None]


class Cusparselt(CudaBackend):
    """Slid weights on the 2:4 units, through NVIDIA's library."""

    name = "cusparselt"
    operations = ("lift_quant", "sparse_gemm", "dequant", "backends/native.c")
    runs = SlideSpec
    form = "cusparselt"

    def __init__(self, spec: SlideSpec, device: torch.device) -> None:
        super().__init__(spec, device)
        self._calls: dict[_Key, _Call] = {}

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
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

    @classmethod
    def drawback(cls, spec: SlideSpec) -> str:
        return "" if spec.length else "2:inf doubles the columns: nothing to gain"

    @property
    def nbytes(self) -> int:
        return int(gemm.padded_rows(self.spec.rows) * self.spec.slid * 5 // 8)  # half the codes, two bits for each

    def complete(self, prepared: Prepared, dtypes: Dtypes) -> None:
        spec = self.spec
        with torch.cuda.device(self.device):
            for tokens in BUCKETS:
                out = gemm.sums_dtype(spec.dtype, torch.bfloat16, gemm.bucket(tokens))
                sparse = gemm.gemm_for(self.device, spec.rows, spec.slid, spec.dtype, out)
                sparse.algorithm(gemm.bucket(tokens), prepared[0])

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        """The library's form of the slid codes, uint8; scale [N]."""
        return gemm.prepare(weight.slid.to(self.device)), weight.scale.detach().to(self.device).view(-1)

    def weight(self, prepared: Prepared) -> SlideWeight:
        """Multiplies unit vectors: a token with a 1 in one lane sums to that lane of the slid weight."""
        codes, scale = prepared
        with torch.cuda.device(self.device):
            return SlideWeight(self.spec, scale.view(-1, 1), slid=self._slid(codes))

    def _slid(self, compressed: Tensor) -> Tensor:
        slid = torch.empty(self.spec.rows, self.spec.slid, dtype=self.spec.dtype, device=compressed.device)
        step = min(self.spec.slid, 1024)
        for first in range(0, self.spec.slid, step):
            lanes = torch.zeros(step, self.spec.slid, dtype=torch.float32, device=compressed.device)
            count = min(step, self.spec.slid - first)
            lanes[:count, first : first + count].fill_diagonal_(1.0)
            sums = gemm.sparse_gemm(lanes.to(self.spec.dtype), compressed, self.spec.rows)
            slid[:, first : first + count] = sums[:count].T.to(self.spec.dtype)
        return slid

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        weight, weight_scale = prepared
        tokens = x.numel() // self.spec.columns
        out = torch.empty((*x.shape[:-1], self.spec.rows), dtype=x.dtype, device=self.device)
        if tokens == 0:
            return out
        scale, term = weight_scale.data_ptr(), 0 if bias is None else bias.data_ptr()
        if (x.data_ptr() | scale | term) % ALIGNMENT or not x.is_contiguous():
            again = aligned(x), (weight, aligned(weight_scale)), None if bias is None else aligned(bias)
            return self.launch(*again)
        call = self._call(tokens, x.dtype, weight, bias)
        stream = stream_of(self.device)
        scratch = _scratch(call.bytes, self.device, stream)
        status = call.start(
            call.settled, tokens, x.data_ptr(), scratch.data_ptr(), weight.data_ptr(), scale, term or scale,
            out.data_ptr(), stream,
        )  # fmt: skip
        if status:
            raise RuntimeError(f"{self.spec}, {tokens} tokens: failed with status {status} (see native.c)")
        return out

    def operand(self, tokens: int) -> tuple[Operand, int] | None:
        return Operand(self.spec.columns, self.spec.dtype, lifted=True, length=self.spec.length), gemm.bucket(tokens)

    def launch_codes(
        self, codes: Tensor, scale: Tensor, prepared: Prepared, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        weight, tokens = prepared[0], scale.shape[0]
        out = torch.empty((tokens, self.spec.rows), dtype=dtype, device=self.device)
        if tokens == 0:
            return out
        weight_scale, bias = aligned(prepared[1]), None if bias is None else aligned(bias)
        call, stream = self._call(tokens, dtype, weight, bias), stream_of(self.device)
        scratch = _scratch(call.bytes - call.sums, self.device, stream)
        sums, workspace = scratch.data_ptr(), scratch.data_ptr() + call.workspace - call.sums
        channel = weight_scale.data_ptr()
        call.plan.run(weight.data_ptr(), codes.data_ptr(), sums, workspace, stream)
        term = channel if bias is None else bias.data_ptr()
        call.dequant.start(sums, scale.data_ptr(), channel, term, out.data_ptr(), tokens, stream)
        return out

    def _call(self, tokens: int, dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> _Call:
        key = (tokens, dtype, None if bias is None else bias.dtype)
        return self._calls.get(key) or self._settle(key, weight)

    def _settle(self, key: _Key, weight: Tensor) -> _Call:
        """The call for a new number of tokens, which is the call of its bucket."""
        tokens, dtype, term = key
        shared = (-gemm.bucket(tokens), dtype, term)  # negative, so that no number of tokens equals it
        if shared not in self._calls:
            self._calls[shared] = _Call(self, key, weight)
        if len(self._calls) > MOST_CALLS:
            self._calls = {one: call for one, call in self._calls.items() if one[0] < 0}
        self._calls[key] = self._calls[shared]
        return self._calls[key]


_SCRATCH: dict[tuple[torch.device, int], Tensor] = {}


def _scratch(nbytes: int, device: torch.device, stream: int) -> Tensor:
    """Memory for one call. The small ones of a stream, which follow each other, share one piece that is kept.

    Not under capture: a graph has memory of its own, and may be replayed beside what the stream does later.
    """
    if nbytes > KEPT_SCRATCH or torch.cuda.is_current_stream_capturing():
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    kept = _SCRATCH.get((device, stream))
    if kept is None:
        kept = _SCRATCH[device, stream] = torch.empty(KEPT_SCRATCH, dtype=torch.uint8, device=device)
    return kept


class _Call:
    """Everything about the calls of one bucket that is known beforehand: kernels, plan, and offsets in the scratch.

    start(settled, tokens, x, scratch, weight, weight_scale, bias, out, stream) -> status: native.c's one call, or the
    same from Python where that cannot be built. All are addresses; the scratch holds codes, scales, sums and the
    library's workspace, in this order.
    """

    def __init__(self, backend: Cusparselt, key: _Key, weight: Tensor) -> None:
        # Imported here: Triton may be absent, and then this backend refuses.
        from ..dequant.kernel import Dequant
        from ..lift_quant.kernel import LiftQuant

        tokens, dtype, bias = key
        spec, out = backend.spec, gemm.sums_dtype(backend.spec.dtype, dtype, gemm.bucket(tokens))
        x = torch.empty(16, dtype=dtype, device=backend.device)
        sparse = gemm.gemm_for(backend.device, spec.rows, spec.slid, spec.dtype, out)
        self.rows = gemm.bucket(tokens)
        self.plan = sparse.plan(tokens, weight)
        self.lift = LiftQuant(spec.columns, spec.length, spec.dtype, x)
        self.dequant = Dequant(spec.rows, sparse.width, out, bias, x)
        sizes = (self.rows * spec.slid, self.rows * 4, self.rows * sparse.width * out.itemsize, self.plan.workspace)
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + -(-size // 256) * 256)
        self.scale, self.sums, self.workspace, self.bytes = ends[1:]
        self.start = native.entry() or self._start_from_python
        self._struct = self._settled()
        self.settled = ctypes.addressof(self._struct)

    def _settled(self) -> native.Settled:
        matmul, handle, plan = self.plan.addresses
        lift, dequant = self.lift.kernel, self.dequant.kernel
        return native.Settled(
            native.launch_address(), matmul, handle, plan, lift.function, dequant.function, self.scale, self.sums,
            self.workspace, self.rows, 32 * lift.metadata.num_warps, lift.metadata.shared,
            32 * dequant.metadata.num_warps, dequant.metadata.shared, self.dequant.tokens, self.dequant.blocks,
        )  # fmt: skip

    def _start_from_python(
        self,
        _: int,
        tokens: int,
        x: int,
        scratch: int,
        weight: int,
        weight_scale: int,
        bias: int,
        out: int,
        stream: int,
    ) -> int:
        scale, sums = scratch + self.scale, scratch + self.sums
        self.lift.start(x, scratch, scale, tokens, self.rows, stream)
        self.plan.run(weight, scratch, sums, scratch + self.workspace, stream)
        self.dequant.start(sums, scale, weight_scale, bias, out, tokens, stream)
        return 0
