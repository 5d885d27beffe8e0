"""Whether a calibration text can decide anything: enough tokens, and different ones. Found before the work."""

from __future__ import annotations

import torch
from torch import Tensor

from ..plan.plan import Plan
from .stream import held_out

TOKENS_PER_COLUMN = 4
"""Fitted tokens for each column of the widest linear, below which its Gram matrix is mostly noise. The defaults, 128
sequences of 2048 tokens, have 16 for 14,336 columns."""
PHRASE = 16
"""Consecutive tokens that are compared to find repetition: texts seldom have the same 16 twice."""
MOST_REPEATED = 0.5
"""Share of phrases that may be there already."""


def calibration_doubts(plan: Plan, tokens: Tensor) -> list[str]:
    """Sentences on calibration tokens [sequences, length] int64 that are too few for the plan, or repeat themselves."""
    doubts = []
    fitted = tokens[held_out(len(tokens))[0]].numel()
    columns = max((linear.stored.shape[1] for linear in plan.linears if not linear.kept), default=0)
    wanted = TOKENS_PER_COLUMN * columns
    if fitted < wanted:
        doubts.append(
            f"Calibration fits {fitted:,} tokens to linears of up to {columns:,} columns: fewer than "
            f"{TOKENS_PER_COLUMN} a column decide little. Use at least {wanted:,} tokens: more --samples or a longer "
            "--length."
        )
    share = repeated(tokens)
    if share > MOST_REPEATED:
        doubts.append(
            f"The calibration text repeats itself: {share:.0%} of its phrases of {PHRASE} tokens were there before. "
            "Use different documents."
        )
    return doubts


def repeated(tokens: Tensor) -> float:
    """The share of phrases, PHRASE consecutive tokens of a sequence, that an earlier phrase of tokens [sequences,
    length] int64 equals; 0 for shorter sequences."""
    if tokens.shape[1] < PHRASE:
        return 0.0
    # Phrases as 64-bit hashes with random odd factors: two different ones are equal by a chance of 2**-60 or so.
    factors = torch.randint(-(2**62), 2**62, (PHRASE,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    width = tokens.shape[1] - PHRASE + 1
    hashes = torch.zeros(len(tokens), width, dtype=torch.int64)
    for place, factor in enumerate(factors):
        hashes += (tokens[:, place : place + width] + 1) * factor
    return 1 - len(hashes.unique()) / hashes.numel()
