"""The values of a token computed twice: for the largest magnitude, and again for the codes, of what the cache holds."""

from __future__ import annotations

import triton
import triton.language as tl

from ..lift_quant.kernel import low_bytes, low_halves
from .elements import load_codes, load_values


@triton.jit
def largest_value(
    x_ptr, other_ptr, weight_ptr, inverse,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, PAIRS: tl.constexpr, NATIVE: tl.constexpr,
    READ: tl.constexpr,
):  # fmt: skip
    """The largest magnitude of a token."""
    largest = tl.zeros([READ], tl.float32)
    for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
        pair = first + tl.arange(0, READ)
        low, high = load_values(
            x_ptr, other_ptr, weight_ptr, inverse, pair, COLUMNS, ELEMENT, NORM, PAIRS, NATIVE
        )  # fmt: skip
        largest = tl.maximum(largest, tl.maximum(tl.abs(low), tl.abs(high)))
    return tl.max(largest, 0)


@triton.jit
def store_words(
    x_ptr, other_ptr, weight_ptr, words_ptr, inverse, factor, scale, reciprocal,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr, WINDOWS: tl.constexpr,
    BLOCKS: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr, PAIRS: tl.constexpr, NATIVE: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    """COUNT windows; scale times factor, and its reciprocal."""
    for first in tl.static_range(0, COUNT, WRITE):
        word = first + tl.arange(0, WRITE)
        pair = word
        if WINDOWS > 0:
            turn = word // BLOCKS
            pair = (turn // WINDOWS * BLOCKS + word % BLOCKS) * (WINDOWS + 1) + turn % WINDOWS
        low, high = load_codes(
            x_ptr, other_ptr, weight_ptr, inverse, factor, scale, reciprocal, pair, COLUMNS, ELEMENT, NORM, FP8,
            STEPS, PAIRS, NATIVE,
        )  # fmt: skip
        lanes = low_bytes(low, high, NATIVE)
        if WINDOWS > 0:
            low, high = load_codes(
                x_ptr, other_ptr, weight_ptr, inverse, factor, scale, reciprocal, pair + 1, COLUMNS, ELEMENT, NORM,
                FP8, STEPS, PAIRS, NATIVE,
            )  # fmt: skip
            lanes = low_halves(lanes, low_bytes(low, high, NATIVE), NATIVE)
        else:
            lanes &= 0xFFFF
        tl.store(words_ptr + word, lanes, mask=word < COUNT)


@triton.jit
def store_bytes(
    x_ptr, other_ptr, weight_ptr, codes_ptr, inverse, factor, scale, reciprocal,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr,
    PAIRS: tl.constexpr, NATIVE: tl.constexpr, READ: tl.constexpr,
):  # fmt: skip
    """Codes that are not lifted, of a number that is no multiple of four."""
    for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
        pair = first + tl.arange(0, READ)
        low, high = load_codes(
            x_ptr, other_ptr, weight_ptr, inverse, factor, scale, reciprocal, pair, COLUMNS, ELEMENT, NORM, FP8,
            STEPS, PAIRS, NATIVE,
        )  # fmt: skip
        tl.store(codes_ptr + 2 * pair, low.to(tl.int8), mask=2 * pair < COLUMNS)
        tl.store(codes_ptr + 2 * pair + 1, high.to(tl.int8), mask=2 * pair + 1 < COLUMNS)
