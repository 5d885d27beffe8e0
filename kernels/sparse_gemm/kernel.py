"""Sparse GEMM over slide windows by cuSPARSELt, on the 2:4 units of NVIDIA GPUs.

The library wants a plan for each number of rows. Planning costs milliseconds, so plans are kept, for numbers of rows
rounded up (`bucket`): at most an eighth is computed in vain. Which of its algorithms is best the library does not
know (its default can be three times slower, measured): they are timed once per power of two, on the first use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor

from ..autotune import Autotuner
from . import library
from .library import LibraryError, Plan

ROWS_MULTIPLE = 32
"""Rows of an 8-bit structured matrix must be a multiple of this."""
LEAST_BUCKET = 16
FLOAT32_TOKENS = 256
"""Up to this many tokens, a product takes as long as reading its weights, whatever it writes."""
MOST_PLANS = 512
"""Plans kept in a process; each is some 100 kB of memory of the host."""


def bucket(tokens: int) -> int:
    """Rows that are computed for `tokens` of them: multiples of 16 up to 256, then of an eighth of a power of two."""
    step = max(LEAST_BUCKET, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def padded_rows(rows: int) -> int:
    """N as the library takes it."""
    return -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


def sums_dtype(codes: torch.dtype, x: torch.dtype, tokens: int) -> torch.dtype:
    """int32 for INT8 codes: exact. For FP8 float32, but bfloat16 for many tokens where the output is bfloat16 as well:
    there writing and reading the sums takes time, and rounding twice loses little."""
    if codes == torch.int8:
        return torch.int32
    return torch.bfloat16 if x == torch.bfloat16 and tokens > FLOAT32_TOKENS else torch.float32


def prepare(slid: Tensor) -> Tensor:
    """slid [N, K'] codes on a CUDA device -> the prepared weight that `sparse_gemm` multiplies with, uint8 [bytes].

    LibraryError if a window holds more than two non-zeros.
    """
    missing = padded_rows(slid.shape[0]) - slid.shape[0]
    if missing:
        slid = torch.nn.functional.pad(slid.view(torch.int8), (0, 0, 0, missing)).view(slid.dtype)
    return library.compress(slid.contiguous())


class SparseGemm:
    """All plans for weights of one shape on one device. rows: N; slid: K'. Sums have `width` columns, N padded."""

    def __init__(self, device: torch.device, rows: int, slid: int, dtype: torch.dtype, out: torch.dtype) -> None:
        self.device, self.slid, self.dtype, self.out = device, slid, dtype, out
        self.width = padded_rows(rows)
        kinds = " to ".join(str(kind).removeprefix("torch.") for kind in (dtype, out))
        what = f"a sparse {self.width} x {slid} product, {kinds}"
        self._autotuner = Autotuner(what, "sparse_gemm", self.width * out.itemsize + slid, device)

    def plan(self, tokens: int, prepared: Tensor) -> Plan:
        """The plan for bucket(tokens) rows; made, and its algorithm chosen, on first use.

        prepared: any weight of this shape, to time with. RuntimeError if it would have to be timed while a CUDA
        graph is captured.
        """
        key = (self, bucket(tokens))
        plan = _PLANS.get(key)
        if plan is None:
            plan = self._plan(key[1], self.algorithm(key[1], prepared))
            _PLANS[key] = plan
            if len(_PLANS) > MOST_PLANS:
                _PLANS.popitem(last=False)
        else:
            _PLANS.move_to_end(key)
        return plan

    def algorithm(self, tokens: int, prepared: Tensor) -> int:
        """The library's best algorithm for so many tokens; timed on first use. prepared: as `plan`."""
        return self._autotuner.choose(tokens, lambda rows: self._candidates(rows, prepared))

    def _plan(self, rows: int, algorithm: int | None) -> Plan:
        return Plan(self.device.index, self.width, self.slid, rows, self.dtype, self.out, algorithm)

    def _candidates(self, rows: int, prepared: Tensor) -> Iterator[tuple[int, Callable[[int], None]]]:
        codes = torch.randint(-100, 100, (rows, self.slid), dtype=torch.int8, device=self.device)
        sums = torch.empty(rows, self.width, dtype=self.out, device=self.device)
        for algorithm in range(self._plan(rows, None).algorithms):
            try:
                plan = self._plan(rows, algorithm)
                workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=self.device)
                start = partial(plan.run, prepared.data_ptr(), codes.data_ptr(), sums.data_ptr(), workspace.data_ptr())
                start(torch.cuda.current_stream(self.device).cuda_stream)
            except LibraryError:
                continue  # this algorithm does not take this shape
            yield algorithm, start


_PLANS: OrderedDict[tuple[SparseGemm, int], Plan] = OrderedDict()


@cache
def gemm_for(device: torch.device, rows: int, slid: int, dtype: torch.dtype, out: torch.dtype) -> SparseGemm:
    """The one SparseGemm of this process for such weights and sums."""
    return SparseGemm(device, rows, slid, dtype, out)


def sparse_gemm(codes: Tensor, prepared: Tensor, rows: int, out: torch.dtype | None = None) -> Tensor:
    """codes [R, K'] int8 or float8 on a CUDA device, prepared weight from `prepare` -> sums [R, N].

    rows: N. out: int32 (exact) or bfloat16 for INT8, float32 or bfloat16 for FP8; the first one by default. The
    sums of FP8 products are accumulated as the tensor cores do, with less than float32 has.
    """
    tokens = codes.shape[0]
    out = out or sums_dtype(codes.dtype, torch.float32, tokens)
    gemm = gemm_for(codes.device, rows, codes.shape[1], codes.dtype, out)
    sums = torch.empty(bucket(max(tokens, 1)), gemm.width, dtype=gemm.out, device=codes.device)
    if tokens:
        plan = gemm.plan(tokens, prepared)
        if sums.shape[0] > tokens:
            padding = (0, 0, 0, sums.shape[0] - tokens)
            codes = torch.nn.functional.pad(codes.view(torch.int8), padding).view(codes.dtype)
        workspace = torch.empty(plan.workspace, dtype=torch.uint8, device=codes.device)
        stream = torch.cuda.current_stream(codes.device).cuda_stream
        plan.run(prepared.data_ptr(), codes.contiguous().data_ptr(), sums.data_ptr(), workspace.data_ptr(), stream)
    return sums[:tokens, :rows]
