"""What comes before a linear, in float64, rounded step by step; and where another last bit would round elsewhere.

Values are rounded to 7 or 10 bits after the leading one (bfloat16, float16), to 23 (float32). Products of two numbers
of 16 bits are exact in float32, and so are their roundings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
LEAST_EXPONENT = {"bfloat16": -126, "float16": -14, "float32": -126}
SLACK = 2.0**-19
"""What float32 results of a mean, a root, an exponential and a product may be off, relative: 32 roundings."""
Floats = NDArray[np.float64]


class Values(NamedTuple):
    """value [M, K]. unsure [M, K]: a rounding on the way to it may have gone the other way. total: the sum, if any."""

    value: Floats
    unsure: NDArray[np.bool_]
    total: Floats


def step(value: Floats, kind: str) -> Floats:
    """The distance of the numbers of a dtype around a value."""
    exponent = np.maximum(np.frexp(value)[1] - 1, LEAST_EXPONENT[kind])
    return np.ldexp(1.0, exponent - BITS[kind])


def nearest(value: Floats, kind: str) -> Floats:
    """The nearest number of a dtype, ties to even."""
    size = step(value, kind)
    return np.rint(value / size) * size


def values(
    element: str, eps: float | None, x: Floats, other: Floats, weight: Floats, kind: str
) -> Values:  # x, other [M, K], weight [K]
    unsure = np.zeros(x.shape, dtype=np.bool_)

    def inexact(value: Floats, more: Floats | float = 0.0) -> Floats:
        """Round what float32 arithmetic gave, with its own errors. more: on top of SLACK."""
        nonlocal unsure
        slack = SLACK + more
        unsure |= nearest(value * (1 + slack), kind) != nearest(value * (1 - slack), kind)
        return nearest(value, kind)

    if element == "sum":
        x = nearest(x + other, kind)
    elif element == "silu":
        with np.errstate(over="ignore"):
            # An exponential is as wrong as its argument, which has been rounded.
            x = nearest(inexact(x / (1 + np.exp(-x)), np.abs(x) * 2.0**-22) * other, kind)
    elif element == "relu2":
        x = nearest(nearest(np.maximum(x, 0) ** 2, kind) * other, kind)
    total = x
    if eps is not None:
        # An element that is unsure makes the whole mean so, if it is among the larger ones: by its step.
        doubt = (np.where(unsure, 2 * np.abs(x) * step(x, kind), 0).sum(1) > SLACK * (x**2).sum(1))[:, None]
        inverse = 1 / np.sqrt((x**2).mean(1, keepdims=True) + eps)
        x = nearest(weight * inexact(x * inverse), kind)
        unsure |= doubt
    return Values(x, unsure, total)
