"""Scales and bias on the sums of a GEMM, in Triton: read once, written once, any size (offsets of 64 bits)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher, aligned, start, stream_of

BLOCK_COLUMNS = 1024
BLOCK_TOKENS = 8
WARPS = 4


@triton.jit(do_not_specialize=["tokens"])
def dequant_kernel(
    sums_ptr,  # [≥ tokens, STRIDE] int32, bfloat16 or float32
    scale_ptr,  # [tokens] float32
    weight_scale_ptr,  # [COLUMNS] float32
    bias_ptr,  # [COLUMNS], not read without BIAS
    out_ptr,  # [tokens, COLUMNS]
    tokens,
    COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < COLUMNS
    weight_scale = tl.load(weight_scale_ptr + column, mask=inside, other=0.0)
    if BIAS:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    for step in tl.static_range(BLOCK_TOKENS):
        token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + step
        there = inside & (token < tokens)
        sums = tl.load(sums_ptr + token * STRIDE + column, mask=there, other=0, eviction_policy="evict_first")
        out = sums.to(tl.float32) * tl.load(scale_ptr + token, mask=token < tokens, other=0.0) * weight_scale
        if BIAS:
            out += bias
        tl.store(out_ptr + token * COLUMNS + column, out.to(out_ptr.dtype.element_ty), mask=there)


LAUNCHER = Launcher(dequant_kernel)


class Dequant:
    """`dequant` for one width and kinds of numbers: compiled, ready to start on addresses.

    Its grid: a block of tokens each, by `blocks` blocks of columns.
    """

    tokens = BLOCK_TOKENS

    def __init__(self, columns: int, stride: int, sums: torch.dtype, bias: torch.dtype | None, out: Tensor) -> None:
        """out: any aligned tensor of the dtype and device of the outputs to come."""
        self._constants = (columns, stride, bias is not None, BLOCK_COLUMNS, BLOCK_TOKENS)
        self.blocks = triton.cdiv(columns, BLOCK_COLUMNS)
        key = (out.device, out.dtype, sums, bias, self._constants)
        floats = torch.empty(4, dtype=torch.float32, device=out.device)
        like = [torch.empty(16, dtype=dtype or torch.float32, device=out.device) for dtype in (sums, bias)]
        arguments = (like[0], floats, floats, like[1], out, 1)
        self.kernel = LAUNCHER.compiled(key, arguments, self._constants, WARPS)

    def start(self, sums: int, scale: int, weight_scale: int, bias: int, out: int, tokens: int, stream: int) -> None:
        """sums [≥ tokens, stride] -> out [tokens, columns]; addresses that are multiples of 16."""
        grid = (-(-tokens // BLOCK_TOKENS), self.blocks)
        start(self.kernel, grid, stream, sums, scale, weight_scale, bias, out, tokens, *self._constants)


def dequant(sums: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sums [R, N] int32, bfloat16 or float32 on a CUDA device, rows contiguous; scale [M, 1] float32; weight_scale
    [N] float32; bias [N] or None -> [M, N] of `dtype`, M <= R, the same bits as the reference gives."""
    tokens, columns = scale.shape[0], sums.shape[1]
    out = torch.empty(tokens, columns, dtype=dtype, device=sums.device)
    if not out.numel():
        return out
    if sums.stride(1) != 1 or sums.data_ptr() % 16:
        sums = aligned(sums)
    scale, weight_scale = aligned(scale), aligned(weight_scale)
    bias = None if bias is None else aligned(bias)
    op = Dequant(columns, sums.stride(0), sums.dtype, None if bias is None else bias.dtype, out)
    op.start(
        sums.data_ptr(), scale.data_ptr(), weight_scale.data_ptr(), (weight_scale if bias is None else bias).data_ptr(),
        out.data_ptr(), tokens, stream_of(sums.device),
    )  # fmt: skip
    return out
