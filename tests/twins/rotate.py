"""The estimated loss of pruning in a rotated basis, entry by entry in float64: everything is rotated, then inverted.
And the descent of a single rotation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def block_diagonal(blocks: list[Matrix]) -> Matrix:
    size = sum(len(block) for block in blocks)
    out, start = np.zeros((size, size)), 0
    for block in blocks:
        out[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return out


def estimated_loss(weight: Matrix, gram: Matrix, reads: Matrix, writes: Matrix, length: int) -> float:
    """y = W x with x' = x Q, y' = y P: the OBS cost of the two cheapest weights of every block of `length` columns,
    relative to tr(W H Wᵀ). Damped by 1 % of the mean diagonal, as SparseGPT does."""
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(len(gram))
    inverse = np.linalg.inv(reads.T @ damped @ reads)
    turned = writes.T @ weight @ reads
    lost = 0.0
    for row in turned:
        costs = [row[column] ** 2 / inverse[column, column] for column in range(len(row))]
        for start in range(0, len(row), length):
            block = sorted(costs[start : start + length])
            lost += sum(block[: max(0, 2 - (length - len(block)))])
    return lost / float(np.trace(weight @ gram @ weight.T))


def descended(rotation: Matrix, gradients: list[Matrix], rate: float, steps: int) -> Matrix:
    """One rotation after a step of Adam (0.9, 0.99) on the orthogonal group for each gradient, of `steps` steps whose
    rate falls to zero as a cosine does."""
    first, second = np.zeros_like(rotation), np.zeros_like(rotation)
    for number, gradient in enumerate(gradients):
        tangent = rotation.T @ gradient - gradient.T @ rotation
        first = 0.9 * first + 0.1 * tangent
        second = 0.99 * second + 0.01 * tangent**2
        present = rate * (1 + np.cos(np.pi * number / steps)) / 2
        root = np.sqrt(second / (1 - 0.99 ** (number + 1))) + 1e-12
        skew = -present * first / (1 - 0.9 ** (number + 1)) / root
        unit = np.eye(len(rotation))
        rotation = rotation @ np.linalg.inv(unit - skew / 2) @ (unit + skew / 2)
    return rotation
