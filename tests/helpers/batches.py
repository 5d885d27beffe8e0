"""The batches of an epoch of training, drawn the plain way."""

from __future__ import annotations

import math

import torch


def drawn_batches(count: int, batch: int, generator: torch.Generator) -> list[list[int]]:
    """The numbers below `count` in random order, as batches: each takes the next number of every remainder modulo
    `batch`."""
    drawn = torch.randperm(count, generator=generator).tolist()
    kinds = [[number for number in drawn if number % batch == kind] for kind in range(batch)]
    return [[kind[place] for kind in kinds if place < len(kind)] for place in range(math.ceil(count / batch))]
