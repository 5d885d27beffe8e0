"""Weights in groups, one after another in numpy: their grid, their codes, which of them stay, and both layouts' bytes.

Numbers are float32 where the format says so, float64 elsewhere. Shares no code with slideconvert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

TINY = np.float32(2.0**-126)
"""The smallest normal float32."""


def up_to_bfloat16(value: np.float32) -> np.float32:
    """The smallest bfloat16 that is not below a positive number: the upper half of its bits, one more if the lower half
    is not zero."""
    bits = int(np.array(value, np.float32).view(np.uint32))
    whole = (bits >> 16) + (1 if bits & 0xFFFF else 0)
    return np.float32(np.array(whole << 16, np.uint32).view(np.float32))


def grid(group: Floats, bits: int, *, symmetric: bool) -> tuple[np.float32, int]:
    """The weights of a group -> scale, and the stored code that means zero."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = min(np.float32(0), group.min()), max(np.float32(0), group.max())
    if low == high:
        return np.float32(1), middle
    if symmetric:
        exact = max(np.float32(high / np.float32(middle - 1)), np.float32(-low / np.float32(middle)))
    else:
        exact = np.float32(np.float32(high - low) / np.float32(top))
    scale = up_to_bfloat16(max(exact, TINY))
    return scale, middle if symmetric else min(top, max(0, round(float(np.float32(-low / scale)))))


def grids(weight: Floats, size: int, bits: int, *, symmetric: bool) -> tuple[Floats, NDArray[np.int64]]:
    """weight [rows, columns] -> scale and zero point of each group, [rows, columns / size]."""
    found = [[grid(group, bits, symmetric=symmetric) for group in row.reshape(-1, size)] for row in weight]
    return np.array([[one[0] for one in row] for row in found]), np.array([[one[1] for one in row] for row in found])


def nearest(value: float, zero: int, bits: int) -> int:
    """A weight in units of its scale -> its code, less the zero point. Python rounds halves to even."""
    return max(-zero, min(2**bits - 1 - zero, round(value)))


def codes(weight: Floats, scale: Floats, zero: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """weight [rows, columns], scale and zero of its groups -> codes less the zero points."""
    size = weight.shape[1] // scale.shape[1]
    out = np.zeros(weight.shape, np.int64)
    for row, column in np.ndindex(*weight.shape):
        own = scale[row, column // size]
        out[row, column] = nearest(float(np.float32(weight[row, column] / own)), int(zero[row, column // size]), bits)
    return out


# ---- which groups stay


def masks(rows: int, groups: int, kept: int, most: int) -> Mask:
    """Every choice of `kept` groups that leaves each row at least one and none more than `most`, [choices, rows *
    groups]."""
    places = rows * groups
    every = np.arange(2**places)[:, None] >> np.arange(places)[::-1] & 1 == 1
    by_row = every.reshape(-1, rows, groups).sum(2)
    legal = (every.sum(1) == kept) & (by_row.min(1) >= 1) & (by_row.max(1) <= most)
    found: Mask = every[legal][::-1]
    return found


def best(scores: Matrix, choices: Mask) -> Mask:
    """scores [rows, groups] -> of all choices the one with the largest sum; of equals the one that keeps groups further
    up, and further to the left in the same row."""
    sums = choices @ scores.flatten()
    found: Mask = choices[int(np.argmax(sums))].reshape(scores.shape)  # the first of equals: choices fall by place
    return found


def saliency(weight: Matrix, hessian: Matrix, size: int) -> Matrix:
    """[rows, groups] mean of w² / [H⁻¹]_jj²."""
    score = weight**2 / np.diag(np.linalg.inv(hessian)) ** 2
    found: Matrix = score.reshape(len(weight), -1, size).mean(2)
    return found


def removal_losses(weight: Matrix, hessian: Matrix, size: int) -> Matrix:
    """[rows, groups] what is lost when a group alone goes and the other weights of its row are solved for again."""
    out = np.zeros((len(weight), weight.shape[1] // size))
    for row, group in np.ndindex(*out.shape):
        rest = [column for column in range(weight.shape[1]) if column // size != group]
        there = np.zeros(weight.shape[1])
        there[rest] = np.linalg.solve(hessian[np.ix_(rest, rest)], hessian[rest] @ weight[row])
        out[row, group] = (weight[row] - there) @ hessian @ (weight[row] - there)
    return out


# ---- GPTQ


def gptq(
    weight: Matrix, hessian: Matrix, order: list[int], keep: Mask, scale: Floats, zero: NDArray[np.int64], bits: int
) -> tuple[NDArray[np.int64], Matrix]:
    """Codes less zero points [rows, columns], column after column in that order, and how near each row's nearest
    decision was to the next code, in units of the scale. The inverse of what is still free is taken anew for each."""
    size = weight.shape[1] // scale.shape[1]
    out, work, margins = np.zeros(weight.shape, np.int64), weight.astype(np.float64), np.ones(len(weight))
    inverses = [np.linalg.inv(hessian[np.ix_(order[place:], order[place:])])[0] for place in range(len(order))]
    for row in range(len(weight)):
        for place, column in enumerate(order):
            own, point = float(scale[row, column // size]), int(zero[row, column // size])
            if keep[row, column]:
                value = work[row, column] / own
                out[row, column] = nearest(value, point, bits)
                if -point <= value <= 2**bits - 1 - point:
                    margins[row] = min(margins[row], 0.5 - abs(value - round(value)))
            off = work[row, column] - out[row, column] * own
            work[row, order[place:]] -= off / inverses[place][0] * inverses[place]
    return out, margins


# ---- the files


def nibbles(packed: NDArray[np.uint8]) -> list[int]:
    """Bytes -> the numbers of four bits in them, the low ones first."""
    return [half for byte in packed.flatten().tolist() for half in (byte & 15, byte >> 4)]


def read_gqs(
    parts: dict[str, NDArray[Any]], shape: tuple[int, int], size: int, bits: int
) -> tuple[NDArray[np.int64], Matrix, Mask]:
    """The tensors of layout gqs by the ends of their names -> codes less zero points, the weight, and the groups that
    are there [rows, groups]."""
    rows, columns = shape
    made, weight = np.zeros(shape, np.int64), np.zeros(shape)
    there = np.zeros((rows, columns // size), bool)
    count = len(parts["weight_groups"])
    stored = parts["weight_values"].flatten().tolist() if bits == 8 else nibbles(parts["weight_values"])
    points = [2 ** (bits - 1)] * count
    if "weight_zero_point" in parts:
        zero = parts["weight_zero_point"]
        points = zero.flatten().tolist() if bits == 8 else nibbles(zero)
    starts = parts["weight_row_index"].tolist()
    for row in range(rows):
        for number in range(starts[row], starts[row + 1]):
            group = int(parts["weight_groups"][number])
            there[row, group] = True
            own = np.array(stored[number * size : (number + 1) * size]) - points[number]
            made[row, group * size : (group + 1) * size] = own
            weight[row, group * size : (group + 1) * size] = own * float(parts["weight_scale"][number])
    return made, weight, there


def read_dense(
    parts: dict[str, NDArray[Any]], shape: tuple[int, int], size: int, bits: int
) -> tuple[NDArray[np.int64], Matrix]:
    """The tensors of layout dense (pack-quantized) -> codes less zero points, and the weight."""
    rows, columns = shape
    assert parts["weight_shape"].tolist() == [rows, columns]
    per_word = 32 // bits
    words = parts["weight_packed"].view(np.uint32)
    made, weight = np.zeros(shape, np.int64), np.zeros(shape)
    for row, column in np.ndindex(rows, columns):
        stored = int(words[row, column // per_word]) >> (column % per_word * bits) & (2**bits - 1)
        point = 2 ** (bits - 1)
        if "weight_zero_point" in parts:
            zero = int(parts["weight_zero_point"].view(np.uint32)[row // per_word, column // size])
            point = zero >> (row % per_word * bits) & (2**bits - 1)
        made[row, column] = stored - point
        weight[row, column] = made[row, column] * float(parts["weight_scale"][row, column // size])
    return made, weight
