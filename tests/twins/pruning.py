"""Calibrated pruning in float64, one weight after another: every inverse is numpy.linalg.inv, every refit a solve.

`hessian` [columns, columns] is the damped Gram matrix of the inputs; `length` is L of 2:L. `grid` is (scheme, scale
[rows]) or None; with a grid, weights come back as code times scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.twins.quantize import FINITE, e4m3_value

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
Grid = tuple[str, NDArray[Any]]

CODES = {
    "int8": {float(code): code % 2 for code in range(-127, 128)},
    "fp8": {e4m3_value(byte): byte % 2 for byte in reversed(FINITE)},
}
"""The numbers of a grid with scale 1, and whether the code of each is odd."""


def rounded(value: float, scheme: str, scale: float) -> tuple[float, float]:
    """The nearest number on the grid, the even code of two equally near; and how far the value is from where the next
    one would be as near, as a share of the largest number."""
    numbers = CODES[scheme]
    nearest, second = sorted(numbers, key=lambda number: (abs(value / scale - number), numbers[number]))[:2]
    margin = (abs(value / scale - second) - abs(value / scale - nearest)) / 2 / max(numbers)
    return nearest * scale, margin


def loss(weight: Matrix, other: Matrix, hessian: Matrix) -> Matrix:
    """[rows] (w - o) H (w - o)ᵀ."""
    return np.array([row @ hessian @ row for row in weight - other])


def gap(scores: Matrix, gone: list[int]) -> float:
    """How far the scores of those that go are from those that stay, as a share of the latter."""
    stays = [score for column, score in enumerate(scores) if column not in gone]
    highest = max([0.0, *scores[gone]])
    return float((min(stays) - highest) / min(stays)) if stays and gone and highest > 0 else 1.0


def worst_two(scores: Matrix, length: int) -> list[int]:
    """scores of the columns of a group that are present -> those that go: the two lowest, the lower column of equals.
    Missing columns are zeros and may be the ones that go."""
    padded = [*scores, *[0.0] * (length - len(scores))]
    return [column for _, column in sorted(zip(padded, range(length), strict=True))[:2] if column < len(scores)]


# ---- the sweep, by the letter of the paper: a Cholesky factor of the inverse, rows of which pay errors back


def sweep(
    weight: Matrix, hessian: Matrix, order: list[int], length: int | None, keep: Mask | None, grid: Grid | None
) -> tuple[Matrix, Mask, Matrix]:
    """weight [rows, columns] -> weight, keep, margins [rows]: how near the nearest decision was to falling otherwise.
    Columns are visited in that order, groups whole; length chooses the mask at each group's first column, keep gives
    it."""
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T  # inverse = upperᵀ upper
    work = weight[:, order].astype(np.float64)
    mask = np.ones(work.shape, dtype=bool) if keep is None else keep[:, order].copy()
    margins = np.ones(len(work))
    for row in range(len(work)):
        for i in range(len(order)):
            if length and order[i] % length == 0:
                group = [j for j in range(i, min(i + length, len(order))) if order[j] // length == order[i] // length]
                scores = np.array([(work[row, j] / upper[j, j]) ** 2 for j in group])
                worst = worst_two(scores, length)
                mask[row, [group[gone] for gone in worst]] = False
                margins[row] = min(margins[row], gap(scores, worst))
            value = work[row, i] if mask[row, i] else 0.0
            if grid and mask[row, i]:
                value, margin = rounded(value, grid[0], float(grid[1][row]))
                margins[row] = min(margins[row], margin)
            error = (work[row, i] - value) / upper[i, i]
            work[row, i + 1 :] -= error * upper[i, i + 1 :]
            work[row, i] = value
    back = np.argsort(order)
    return work[:, back], mask[:, back], margins


# ---- the same by brute force: the inverse of what is still free, taken anew for every column


def brute_force(
    weight: Matrix, hessian: Matrix, order: list[int], length: int | None, keep: Mask | None, grid: Grid | None
) -> tuple[Matrix, Mask]:
    """Optimal Brain Surgeon with that order of elimination: the arguments of `sweep`, weight and keep."""
    out, mask = weight.astype(np.float64), np.ones(weight.shape, dtype=bool) if keep is None else keep.copy()
    for row in range(len(weight)):
        free = list(order)
        while free:
            column = free[0]
            if length and column % length == 0:
                group = [j for j in free if j // length == column // length]
                # A column is judged by the inverse without those of its group that are passed before it.
                after = [free[free.index(j) :] for j in group]
                inverses = [np.linalg.inv(hessian[np.ix_(rest, rest)])[0, 0] for rest in after]
                scores = np.array([out[row, j] ** 2 / inverse for j, inverse in zip(group, inverses, strict=True)])
                for gone in worst_two(scores, length):
                    mask[row, group[gone]] = False
            inverse = np.linalg.inv(hessian[np.ix_(free, free)])
            value = 0.0
            if mask[row, column]:
                value = rounded(out[row, column], grid[0], float(grid[1][row]))[0] if grid else out[row, column]
            out[row, free] -= (out[row, column] - value) / inverse[0, 0] * inverse[0]
            out[row, column] = value
            free.remove(column)
    return out, mask


# ---- the refit on a mask


def least_squares(weight: Matrix, hessian: Matrix, keep: Mask) -> Matrix:
    """The weights on the mask of least loss: normal equations of each row's support."""
    out = np.zeros(weight.shape)
    for row, present in enumerate(keep):
        support = np.flatnonzero(present)
        out[row, support] = np.linalg.solve(hessian[np.ix_(support, support)], hessian[support] @ weight[row])
    return out


def conjugate_gradients(weight: Matrix, start: Matrix, hessian: Matrix, keep: Mask, steps: int) -> Matrix:
    """Textbook conjugate gradients on the support of each row, Jacobi preconditioner; stops at the exact solution."""
    out = np.zeros(weight.shape)
    for row, present in enumerate(keep):
        support = np.flatnonzero(present)
        matrix, right = hessian[np.ix_(support, support)], hessian[support] @ weight[row]
        x = start[row, support].astype(np.float64)
        residual = right - matrix @ x
        scaled = residual / np.diag(matrix)
        direction = scaled.copy()
        for _ in range(steps):
            if np.linalg.norm(residual) <= 1e-13 * np.linalg.norm(right):
                break
            step = (residual @ scaled) / (direction @ matrix @ direction)
            x = x + step * direction
            after = residual - step * (matrix @ direction)
            scaled_after = after / np.diag(matrix)
            direction = scaled_after + (after @ scaled_after) / (residual @ scaled) * direction
            residual, scaled = after, scaled_after
        out[row, support] = x
    return out


# ---- the asymmetric target


def asymmetric_target(weight: Matrix, dense: Matrix, moved: Matrix, ridge: Matrix, strength: float) -> Matrix:
    """dense, moved [tokens, columns], ridge [columns] -> the ŵ of least ||ŵX - wX̃||² + Σ ridge (ŵ - w)², by lstsq,
    `strength` of the way from w."""
    anchor = np.diag(np.sqrt(ridge))
    exact = np.linalg.lstsq(np.vstack([moved, anchor]), np.vstack([dense, anchor]) @ weight.T, rcond=None)[0].T
    return weight + strength * (exact - weight)


# ---- ADMM, by the letter: eigenvectors once, V and ρ as they stand in the paper


def project(values: Matrix, length: int) -> Mask:
    """True where a weight stays: the two of smallest |.| of each group go."""
    keep = np.ones(values.shape, dtype=bool)
    for row in range(len(values)):
        for start in range(0, values.shape[1], length):
            for gone in worst_two(np.abs(values[row, start : start + length]), length):
                keep[row, start + gone] = False
    return keep


def admm(weight: Matrix, hessian: Matrix, length: int) -> Mask:
    """The mask of ALPS with its schedule of ρ: 0.1 or half of what inputs leave unexplained of each other; every 3
    iterations × 1.3, 1.2 or 1.1; at most 300."""
    norm = np.sqrt(np.diag(hessian))
    scaled, target = hessian / np.outer(norm, norm), weight * norm
    values, vectors = np.linalg.eigh(scaled)
    rho = min(0.1, 0.5 * float(np.mean(1 / np.diag(np.linalg.inv(scaled)))))
    mask = before = project(target, length)
    d, v = target * mask, np.zeros_like(target)
    for iteration in range(1, 301):
        b = (target @ scaled - v + rho * d) @ (vectors / (values + rho)) @ vectors.T
        mask = project(b + v / rho, length)
        d = (b + v / rho) * mask
        v = v + rho * (b - d)
        if iteration % 3 == 0:
            changed = (mask != before).sum() / mask.sum()
            if changed == 0 or (iteration >= 30 and changed < 0.0003):
                break
            rho *= 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1
            before = mask
    return mask
