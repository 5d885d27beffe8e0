"""The values of a token in registers: computed once, for the largest magnitude, and kept for the codes.

A thread holds whole blocks, so that windows that overlap are made of what it has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..lift_quant.kernel import low_bytes, low_halves
from ..quantize.kernel import code
from .elements import load_values

MOST_HELD = 64
"""Values of a thread: more of them and what they are computed from do not fit into its registers."""


@triton.jit
def hold_values(
    x_ptr, other_ptr, weight_ptr, inverse,
    COLUMNS: tl.constexpr, ELEMENT: tl.constexpr, NORM: tl.constexpr, COUNT: tl.constexpr, WINDOWS: tl.constexpr,
    PAIRS: tl.constexpr, NATIVE: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The values of COUNT blocks of WINDOWS + 1 pairs, HOLD blocks at a time; and the largest magnitude."""
    held = ()
    largest = tl.zeros([HOLD], tl.float32)
    for first in tl.static_range(0, COUNT, HOLD):
        block = first + tl.arange(0, HOLD)
        for place in tl.static_range(WINDOWS + 1):
            low, high = load_values(
                x_ptr, other_ptr, weight_ptr, inverse, block * (WINDOWS + 1) + place, COLUMNS, ELEMENT, NORM, PAIRS,
                NATIVE,
            )  # fmt: skip
            largest = tl.maximum(largest, tl.maximum(tl.abs(low), tl.abs(high)))
            held = held + (low, high)  # type: ignore[assignment]  # noqa: RUF005 (Triton unpacks nothing)
    return held, tl.max(largest, 0)


@triton.jit
def held_pair(
    held, factor, scale, reciprocal,
    PAIR: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """The codes of two values, as the two lowest bytes."""
    low = code(held[2 * PAIR] * factor, scale, reciprocal, FP8, STEPS)
    high = code(held[2 * PAIR + 1] * factor, scale, reciprocal, FP8, STEPS)
    return low_bytes(low, high, NATIVE)


@triton.jit
def store_held(
    held, words_ptr, factor, scale, reciprocal,
    COUNT: tl.constexpr, WINDOWS: tl.constexpr, BLOCKS: tl.constexpr, FP8: tl.constexpr, STEPS: tl.constexpr,
    NATIVE: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """The windows of what `hold_values` gave; scale times factor, and its reciprocal."""
    for first in tl.static_range(0, COUNT, HOLD):
        block = first + tl.arange(0, HOLD)
        word = block // BLOCKS * (WINDOWS * BLOCKS) + block % BLOCKS
        first_pair = held_pair(held, factor, scale, reciprocal, first // HOLD * (WINDOWS + 1), FP8, STEPS, NATIVE)
        if WINDOWS == 2:  # both windows in one store
            second = held_pair(held, factor, scale, reciprocal, first // HOLD * 3 + 1, FP8, STEPS, NATIVE)
            third = held_pair(held, factor, scale, reciprocal, first // HOLD * 3 + 2, FP8, STEPS, NATIVE)
            both = tl.join(low_halves(first_pair, second, NATIVE), low_halves(second, third, NATIVE))
            words = word[:, None] + tl.arange(0, 2)[None, :] * BLOCKS
            tl.store(words_ptr + words, both, mask=(block < COUNT)[:, None])
        else:
            before = first_pair
            for window in tl.static_range(WINDOWS):
                after = held_pair(
                    held, factor, scale, reciprocal, first // HOLD * (WINDOWS + 1) + window + 1, FP8, STEPS, NATIVE
                )  # fmt: skip
                tl.store(words_ptr + word + window * BLOCKS, low_halves(before, after, NATIVE), mask=block < COUNT)
                before = after
