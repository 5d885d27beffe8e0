"""Per-token quantization in Triton: each token read from memory once, written once, rows of padding included.

The division is correctly rounded, as the reference's is, without dividing: q = x * (1 / scale), then
q += (x - q * scale) * (1 / scale) with fused multiply-adds (Markstein). One such step is enough for numbers of 16
bits, two for float32; test_quantize.py tries every scale.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher, aligned, start, stream_of
from .reference import QMAX

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
TOO_SMALL = tl.constexpr(2.0**-64)
"""Scales below this are worked on times 2**64: the remainders of the division would be subnormal."""
MAGIC = tl.constexpr(1.5 * 2.0**23)
"""Added to a number below 2**22 it leaves the nearest integer, ties to even, in the low bits."""


@triton.jit
def scale_of(absmax, qmax: tl.constexpr):
    """The scale of a token, as the reference defines it."""
    scale = tl.maximum(tl.div_rn(absmax, qmax), TINY)
    return tl.where(absmax == 0, 1.0, scale)


@triton.jit
def quotient(x, scale, reciprocal, STEPS: tl.constexpr):
    """x / scale, correctly rounded, given the correctly rounded reciprocal of the scale."""
    q = x * reciprocal
    for _ in tl.static_range(STEPS):
        q = tl.fma(tl.fma(q, -scale, x), reciprocal, q)
    return q


@triton.jit
def code(x, scale, reciprocal, FP8: tl.constexpr, STEPS: tl.constexpr):
    """The code nearest to x / scale, as the low byte of an int32; what is above it is anything."""
    q = quotient(x, scale, reciprocal, STEPS)
    if FP8:
        return q.to(tl.float8e4nv).to(tl.int8, bitcast=True).to(tl.int32)
    return (q + MAGIC).to(tl.int32, bitcast=True)


@triton.jit
def factor_of(scale):
    """What a token and its scale are multiplied with before dividing."""
    return tl.where(scale < TOO_SMALL, 1.0 / TOO_SMALL, 1.0)


def steps(dtype: torch.dtype) -> int:
    """Of `quotient`, for activations of this dtype."""
    return 2 if dtype == torch.float32 else 1


@triton.jit(do_not_specialize=["tokens"])
def quantize_kernel(
    x_ptr,  # [tokens, COLUMNS]
    codes_ptr,  # [programs, COLUMNS], int8 whatever they stand for
    scale_ptr,  # [tokens] float32
    tokens,
    COLUMNS: tl.constexpr,
    QMAX: tl.constexpr,
    FP8: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    codes_ptr += token * COLUMNS
    if token >= tokens:
        for first in range(0, COLUMNS, BLOCK):
            column = first + tl.arange(0, BLOCK)
            tl.store(codes_ptr + column, tl.zeros([BLOCK], tl.int8), mask=column < COLUMNS)
    else:
        x_ptr += token * COLUMNS
        largest = tl.zeros([BLOCK], tl.float32)
        for first in tl.static_range(0, COLUMNS, BLOCK):
            column = first + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x))
        scale = scale_of(tl.max(largest, 0), QMAX)
        tl.store(scale_ptr + token, scale)
        factor = factor_of(scale)
        scale = scale * factor
        reciprocal = tl.div_rn(1.0, scale)
        for first in tl.static_range(0, COLUMNS, BLOCK):
            column = first + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
            tl.store(
                codes_ptr + column, code(x * factor, scale, reciprocal, FP8, STEPS).to(tl.int8), mask=column < COLUMNS
            )


LAUNCHER = Launcher(quantize_kernel)


class Quantize:
    """`quantize` for one number of columns and kinds of numbers: compiled, ready to start on addresses."""

    def __init__(self, columns: int, dtype: torch.dtype, x: Tensor) -> None:
        """x: any aligned tensor of the dtype and device of those to come."""
        warps = 4 if columns <= 4096 else 8
        block = min(512 * warps, triton.next_power_of_2(columns))
        self._constants = (columns, QMAX[dtype], dtype == torch.float8_e4m3fn, steps(x.dtype), block)
        codes = torch.empty(16, dtype=torch.int8, device=x.device)
        scale = torch.empty(4, dtype=torch.float32, device=x.device)
        key = (x.device, x.dtype, warps, self._constants)
        self.kernel = LAUNCHER.compiled(key, (x, codes, scale, 1), self._constants, warps)

    def start(self, x: int, codes: int, scale: int, tokens: int, rows: int, stream: int) -> None:
        """x [tokens, K] -> codes [rows, K], scale [tokens]; addresses that are multiples of 16."""
        start(self.kernel, (rows, 1), stream, x, codes, scale, tokens, *self._constants)


def quantize(x: Tensor, dtype: torch.dtype, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] float16, bfloat16 or float32, finite, on a CUDA device -> codes [rows, K], scale [M, 1] float32.

    The same bytes as the reference gives. rows: M by default; rows beyond M are padding, code 0.
    """
    x = aligned(x)
    return coded(Quantize(x.shape[1], dtype, x), x, x.shape[1], dtype, rows)


def coded(op: Any, x: Tensor, columns: int, dtype: torch.dtype, rows: int | None) -> tuple[Tensor, Tensor]:
    """Start `op` on aligned x [M, K] -> codes [rows, columns] of `dtype`, scale [M, 1] float32; rows: M by default."""
    rows = x.shape[0] if rows is None else rows
    codes = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    if rows:
        op.start(x.data_ptr(), codes.data_ptr(), scale.data_ptr(), x.shape[0], rows, stream_of(x.device))
    return codes, scale
