"""The values of a producer in Triton: pairs of columns of a token, computed from its inputs as the reference does."""

from __future__ import annotations

import triton
import triton.language as tl

from ..lift_quant.kernel import load_pair
from ..quantize.kernel import code


@triton.jit
def rounded(x, KIND: tl.constexpr):
    """A float32 as the nearest number of another dtype, ties to even."""
    return x.to(KIND).to(tl.float32)


@triton.jit
def element_of(x, other, ELEMENT: tl.constexpr, KIND: tl.constexpr):
    """The element of two inputs, as the reference defines it."""
    if ELEMENT == "sum":
        return rounded(x + other, KIND)
    if ELEMENT == "silu":
        active = x / (1.0 + tl.exp(-x))
    else:
        positive = tl.maximum(x, 0.0)
        active = positive * positive
    return rounded(rounded(active, KIND) * other, KIND)


@triton.jit
def load_elements(x_ptr, other_ptr, pair, COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, PAIRS: tl.constexpr):
    """The elements of columns 2 * pair and 2 * pair + 1, 0 beyond the end of the token."""
    low, high = load_pair(x_ptr, pair, COLUMNS, PAIRS)
    if ELEMENT != "same":
        low_other, high_other = load_pair(other_ptr, pair, COLUMNS, PAIRS)
        low = element_of(low, low_other, ELEMENT, x_ptr.dtype.element_ty)
        high = element_of(high, high_other, ELEMENT, x_ptr.dtype.element_ty)
    return low, high


@triton.jit
def load_values(
    x_ptr, other_ptr, weight_ptr, inverse, pair,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """What is quantized of columns 2 * pair and 2 * pair + 1. inverse: 1 / root mean square of the token."""
    low, high = load_elements(x_ptr, other_ptr, pair, COLUMNS, ELEMENT, PAIRS)
    if NORM:
        KIND: tl.constexpr = x_ptr.dtype.element_ty
        low_weight, high_weight = load_pair(weight_ptr, pair, COLUMNS, PAIRS)
        low = rounded(low_weight * rounded(low * inverse, KIND), KIND)
        high = rounded(high_weight * rounded(high * inverse, KIND), KIND)
    return low, high


@triton.jit
def load_codes(
    x_ptr, other_ptr, weight_ptr, inverse, factor, scale, reciprocal, pair,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """The codes of columns 2 * pair and 2 * pair + 1, as `code` gives them; scale times factor, and its reciprocal."""
    low, high = load_values(x_ptr, other_ptr, weight_ptr, inverse, pair, COLUMNS, ELEMENT, NORM, PAIRS)
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
    EPS: tl.constexpr, COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, PAIRS: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """1 / root mean square of the elements of a token; sums are stored on the way.

    The same bits in every kernel. Squares are added in the order of their layout, and Triton gives all accesses of one
    shape the layout that the widest of them wants. So these have a shape that nothing else has: of two dimensions.
    """
    squares = tl.zeros([1, READ], tl.float32)
    for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
        pair = first + tl.arange(0, READ)[None, :]
        low, high = load_elements(x_ptr, other_ptr, pair, COLUMNS, ELEMENT, PAIRS)
        squares += low * low + high * high
        if ELEMENT == "sum":
            store_pair(sum_ptr, pair, low, high, COLUMNS, PAIRS)
    total = tl.sum(tl.sum(squares, 1), 0)
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(total, COLUMNS * 1.0) + EPS))
