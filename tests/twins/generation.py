"""A slow twin of generating text: every token from a run over the whole sequence so far, one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def continued(model: Any, begun: list[int], chances: list[float], given: list[int]) -> list[tuple[int, float]]:
    """For each chance the token into whose share of [0, 1) it falls, and its distance from the nearer end of that.

    The shares are the probabilities of the tokens in their order, after `begun` and the tokens `given` before. A chance
    nearer to an end than the probabilities are exact may fall into either neighbour.
    """
    found = []
    for number, chance in enumerate(chances):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([begun + given[:number]]), use_cache=False).logits[0, -1]
        weights = np.exp(logits.double().numpy() - float(logits.max()))
        below, share = 0.0, weights / weights.sum()
        token = 0
        while token < len(share) - 1 and below + share[token] <= chance:
            below += share[token]
            token += 1
        found.append((token, min(chance - below, below + share[token] - chance)))
    return found
