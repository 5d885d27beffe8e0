"""The values of a producer in Triton: pairs of columns of a token, computed from its inputs as the reference does.

NATIVE: with the GPU's own instructions; plainly where a kernel is interpreted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..lift_quant.kernel import load_pair
from ..quantize.kernel import code

SILU_ASM = tl.constexpr(
    "{ .reg .f32 t; mul.rn.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.rn.f32 t, t, 0f3F800000; "
    "rcp.approx.ftz.f32 t, t; mul.rn.f32 $0, $1, t; }"
)
"""x / (1 + 2 ** (-log2(e) x)): with a division and an exponential of all float32 it takes four times as many
instructions, which were what a kernel waited for."""


@triton.jit
def halves(words, KIND: tl.constexpr):
    """The two numbers of an int32 as float32, as `load_pair` takes them apart. (Not there: times that were measured are
    kept under the hash of its file.)"""
    if tl.bfloat16 == KIND:  # the upper half of a float32
        low = (words << 16).to(tl.float32, bitcast=True)
        high = (words & -65536).to(tl.float32, bitcast=True)
    else:
        low = (words & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def rounded(low, high, KIND: tl.constexpr, NATIVE: tl.constexpr):
    """Two float32 as the nearest numbers of another dtype, ties to even. NATIVE: both in one instruction."""
    if NATIVE and tl.bfloat16 == KIND:
        words = tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, True, 1)
        low, high = halves(words, KIND)
    elif NATIVE and tl.float16 == KIND:
        words = tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [low, high], tl.int32, True, 1)
        low, high = halves(words, KIND)
    else:
        low, high = low.to(KIND).to(tl.float32), high.to(KIND).to(tl.float32)
    return low, high


@triton.jit
def activated(x, ELEMENT: tl.constexpr, NATIVE: tl.constexpr):
    """The activation of silu or relu2, in float32."""
    if ELEMENT == "silu":
        if NATIVE:
            return tl.inline_asm_elementwise(SILU_ASM, "=f,f", [x], tl.float32, True, 1)
        return x / (1.0 + tl.exp(-x))
    positive = tl.maximum(x, 0.0)
    return positive * positive


@triton.jit
def load_elements(
    x_ptr, other_ptr, pair,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, PAIRS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """The elements of columns 2 * pair and 2 * pair + 1, as the reference defines them, 0 beyond the token's end."""
    KIND: tl.constexpr = x_ptr.dtype.element_ty
    low, high = load_pair(x_ptr, pair, COLUMNS, PAIRS)
    if ELEMENT != "same":
        low_other, high_other = load_pair(other_ptr, pair, COLUMNS, PAIRS)
        if ELEMENT == "sum":
            low, high = rounded(low + low_other, high + high_other, KIND, NATIVE)
        else:
            low, high = rounded(activated(low, ELEMENT, NATIVE), activated(high, ELEMENT, NATIVE), KIND, NATIVE)
            low, high = rounded(low * low_other, high * high_other, KIND, NATIVE)
    return low, high


@triton.jit
def load_values(
    x_ptr, other_ptr, weight_ptr, inverse, pair,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, PAIRS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """What is quantized of columns 2 * pair and 2 * pair + 1. inverse: 1 / root mean square of the token."""
    low, high = load_elements(x_ptr, other_ptr, pair, COLUMNS, ELEMENT, PAIRS, NATIVE)
    if NORM:
        KIND: tl.constexpr = x_ptr.dtype.element_ty
        low_weight, high_weight = load_pair(weight_ptr, pair, COLUMNS, PAIRS)
        low, high = rounded(low * inverse, high * inverse, KIND, NATIVE)
        low, high = rounded(low_weight * low, high_weight * high, KIND, NATIVE)
    return low, high


@triton.jit
def load_codes(
    x_ptr, other_ptr, weight_ptr, inverse, factor, scale, reciprocal, pair,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr,
    PAIRS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """The codes of columns 2 * pair and 2 * pair + 1, as `code` gives them; scale times factor, and its reciprocal."""
    low, high = load_values(x_ptr, other_ptr, weight_ptr, inverse, pair, COLUMNS, ELEMENT, NORM, PAIRS, NATIVE)
    return code(low * factor, scale, reciprocal, FP8, STEPS), code(high * factor, scale, reciprocal, FP8, STEPS)


@triton.jit
def store_pair(out_ptr, pair, low, high, COLUMNS: tl.constexpr, PAIRS: tl.constexpr):
    """Two numbers that the dtype of out_ptr can hold, to columns 2 * pair and 2 * pair + 1."""
    if PAIRS:
        if out_ptr.dtype.element_ty == tl.bfloat16:
            lower = low.to(tl.int32, bitcast=True) >> 16
            upper = high.to(tl.int32, bitcast=True) >> 16
        else:
            lower = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
            upper = high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
        words_ptr = out_ptr.to(tl.pointer_type(tl.int32))
        tl.store(words_ptr + pair, (lower & 0xFFFF) | (upper << 16), mask=pair < COLUMNS // 2)
    else:
        tl.store(out_ptr + 2 * pair, low.to(out_ptr.dtype.element_ty), mask=2 * pair < COLUMNS)
        tl.store(out_ptr + 2 * pair + 1, high.to(out_ptr.dtype.element_ty), mask=2 * pair + 1 < COLUMNS)


@triton.jit
def inverse_root(
    x_ptr, other_ptr, sum_ptr,
    EPS: tl.constexpr, COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, PAIRS: tl.constexpr, NATIVE: tl.constexpr,
    READ: tl.constexpr,
):  # fmt: skip
    """1 / root mean square of the elements of a token; sums are stored on the way.

    The same bits in every kernel. Squares are added in the order of their layout, and Triton gives all accesses of one
    shape the layout that the widest of them wants. So these have a shape that nothing else has: of two dimensions.
    """
    squares = tl.zeros([1, READ], tl.float32)
    for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
        pair = first + tl.arange(0, READ)[None, :]
        low, high = load_elements(x_ptr, other_ptr, pair, COLUMNS, ELEMENT, PAIRS, NATIVE)
        squares += low * low + high * high
        if ELEMENT == "sum":
            store_pair(sum_ptr, pair, low, high, COLUMNS, PAIRS)
    total = tl.sum(tl.sum(squares, 1), 0)
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(total, COLUMNS * 1.0) + EPS))
