"""Random weights and activations with the spread of real ones: zeros or equal numbers would take less power, and on a
GPU at its power limit less time."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import DENSE

SEED = 0
STEP = 1 << 24
"""Weights that are drawn and pruned at once."""


def random_weight(rows: int, columns: int, pattern: str, device: torch.device) -> Tensor:
    """[N, K] float32, normal; of 2:L the two smallest of every block of L columns are zero, also in a last block that
    is not whole."""
    generator = torch.Generator(device).manual_seed(SEED)
    weight = torch.empty(rows, columns, dtype=torch.float32, device=device).normal_(generator=generator)
    if pattern in (DENSE, "2:inf"):
        return weight
    length = int(pattern[2:])
    whole = columns // length * length
    step = max(1, STEP // columns)
    for part in weight.split(step):
        blocks = part[:, :whole].reshape(len(part), -1, length)
        smallest = blocks.abs().topk(2, dim=2, largest=False).indices
        part[:, :whole] = blocks.scatter(2, smallest, 0.0).flatten(1)
        part[:, whole : whole + 2] = 0.0
    return weight


def random_activations(tokens: int, columns: int, device: torch.device) -> Tensor:
    """[M, K] bfloat16, normal."""
    generator = torch.Generator(device).manual_seed(SEED + 1)
    return torch.empty(tokens, columns, dtype=torch.float32, device=device).normal_(generator=generator).bfloat16()
