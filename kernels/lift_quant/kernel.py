"""Quantize and lift in one pass, in Triton: each token read from memory once, written once, padding included.

One program a token. It finds the token's largest magnitude, then writes word after word: a word is one window, four
codes of one byte. Window w of the row holds the column pairs p and p + 1, with p = w + w // W (W windows a group): so
a window is two loads of a pair, which the first reading has left in the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher, aligned, start
from ..quantize.kernel import TOO_SMALL, code, coded, scale_of, steps
from ..quantize.reference import QMAX
from ..windows import group_of, slid_columns


@triton.jit
def load_pair(x_ptr, pair, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    """Columns 2 * pair and 2 * pair + 1 of a token as float32, 0 beyond its end. PAIRS: both in one load."""
    if PAIRS:
        words = tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + pair, mask=pair < COLUMNS // 2, other=0)
        if x_ptr.dtype.element_ty == tl.bfloat16:  # the upper half of a float32
            low = (words << 16).to(tl.float32, bitcast=True)
            high = (words & -65536).to(tl.float32, bitcast=True)
        else:
            low = (words & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        low = tl.load(x_ptr + 2 * pair, mask=2 * pair < COLUMNS, other=0.0).to(tl.float32)
        high = tl.load(x_ptr + 2 * pair + 1, mask=2 * pair + 1 < COLUMNS, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def low_bytes(a, b, PERMUTE: tl.constexpr):
    """The low bytes of a and b as the two lowest of an int32; what is above them is anything."""
    if PERMUTE:
        return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0x40;", "=r,r,r", [a, b], tl.int32, True, 1)
    return (a & 0xFF) | ((b & 0xFF) << 8)


@triton.jit
def low_halves(a, b, PERMUTE: tl.constexpr):
    """The low halves of a and b as one int32."""
    if PERMUTE:
        return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [a, b], tl.int32, True, 1)
    return (a & 0xFFFF) | (b << 16)


@triton.jit
def write_words(
    x_ptr, words_ptr, FACTOR: tl.constexpr, scale,
    COLUMNS: tl.constexpr, SLID: tl.constexpr, WINDOWS: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr,
    PAIRS: tl.constexpr, PERMUTE: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """All windows of a token; x and scale are worked on times FACTOR."""
    scale = scale * FACTOR
    reciprocal = tl.div_rn(1.0, scale)
    for first in tl.static_range(0, SLID // 4, WRITE):
        word = first + tl.arange(0, WRITE)
        pair = word if WINDOWS == 0 else word + word // WINDOWS
        low, high = load_pair(x_ptr, pair, COLUMNS, PAIRS)
        low = code(low * FACTOR, scale, reciprocal, FP8, STEPS)
        high = code(high * FACTOR, scale, reciprocal, FP8, STEPS)
        lanes = low_bytes(low, high, PERMUTE)
        if WINDOWS > 0:
            low, high = load_pair(x_ptr, pair + 1, COLUMNS, PAIRS)
            low = code(low * FACTOR, scale, reciprocal, FP8, STEPS)
            high = code(high * FACTOR, scale, reciprocal, FP8, STEPS)
            lanes = low_halves(lanes, low_bytes(low, high, PERMUTE), PERMUTE)
        else:
            lanes &= 0xFFFF
        tl.store(words_ptr + word, lanes, mask=word < SLID // 4)


@triton.jit(do_not_specialize=["tokens"])
def lift_quant_kernel(
    x_ptr,  # [tokens, COLUMNS]
    codes_ptr,  # [programs, SLID] of one byte each
    scale_ptr,  # [tokens] float32
    tokens,
    COLUMNS: tl.constexpr,
    SLID: tl.constexpr,
    WINDOWS: tl.constexpr,  # of a group; 0 for 2:inf
    QMAX: tl.constexpr,
    FP8: tl.constexpr,
    STEPS: tl.constexpr,
    PAIRS: tl.constexpr,
    PERMUTE: tl.constexpr,  # with the GPU's own instruction; plainly where the kernel is interpreted
    READ: tl.constexpr,  # pairs read at a time
    WRITE: tl.constexpr,  # words written at a time
):
    token = tl.program_id(0).to(tl.int64)
    words_ptr = codes_ptr.to(tl.pointer_type(tl.int32)) + token * (SLID // 4)
    if token >= tokens:
        for first in range(0, SLID // 4, WRITE):
            word = first + tl.arange(0, WRITE)
            tl.store(words_ptr + word, tl.zeros([WRITE], tl.int32), mask=word < SLID // 4)
    else:
        x_ptr += token * COLUMNS
        largest = tl.zeros([READ], tl.float32)
        for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
            low, high = load_pair(x_ptr, first + tl.arange(0, READ), COLUMNS, PAIRS)
            largest = tl.maximum(largest, tl.maximum(tl.abs(low), tl.abs(high)))
        scale = scale_of(tl.max(largest, 0), QMAX)
        tl.store(scale_ptr + token, scale)
        # The factor is a constant of each branch: multiplying with 1 costs nothing.
        if scale < TOO_SMALL:
            write_words(
                x_ptr, words_ptr, 1.0 / TOO_SMALL, scale, COLUMNS, SLID, WINDOWS, FP8, STEPS, PAIRS, PERMUTE, WRITE
            )
        else:
            write_words(x_ptr, words_ptr, 1.0, scale, COLUMNS, SLID, WINDOWS, FP8, STEPS, PAIRS, PERMUTE, WRITE)


WRITE = 512
"""Words written at a time by a program: measured, for 4 and for 8 warps."""
LAUNCHER = Launcher(lift_quant_kernel)


class LiftQuant:
    """`lift_quant` for one pattern, number of columns and kinds of numbers: compiled, ready to start on addresses."""

    def __init__(self, columns: int, length: int | None, dtype: torch.dtype, x: Tensor) -> None:
        """x: any aligned tensor of the dtype and device of those to come."""
        self.slid = slid_columns(columns, length)
        warps = 4 if columns <= 4096 else 8
        windows = group_of(length)[1] if length else 0
        pairs = x.element_size() == 2 and columns % 2 == 0
        read = min(128 * warps, triton.next_power_of_2((columns + 1) // 2))
        fp8 = dtype == torch.float8_e4m3fn
        self._constants = (columns, self.slid, windows, QMAX[dtype], fp8, steps(x.dtype), pairs, True, read, WRITE)
        codes = torch.empty(16, dtype=torch.int8, device=x.device)
        scale = torch.empty(4, dtype=torch.float32, device=x.device)
        key = (x.device, x.dtype, warps, self._constants)
        self.kernel = LAUNCHER.compiled(key, (x, codes, scale, 1), self._constants, warps)

    def start(self, x: int, codes: int, scale: int, tokens: int, rows: int, stream: int) -> None:
        """x [tokens, K] -> codes [rows, K'], scale [tokens]; addresses that are multiples of 16."""
        start(self.kernel, (rows, 1), stream, x, codes, scale, tokens, *self._constants)


def lift_quant(x: Tensor, length: int | None, dtype: torch.dtype, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """x [M, K] float16, bfloat16 or float32, finite, on a CUDA device -> codes [rows, K'], scale [M, 1] float32.

    The same bytes as the reference gives. rows: M by default; rows beyond M are padding, code 0.
    """
    x = aligned(x)
    op = LiftQuant(x.shape[1], length, dtype, x)
    return coded(op, x, op.slid, dtype, rows)
