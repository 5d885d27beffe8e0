"""Running models over text: numbers of each token, perplexity among them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SlideConvertError
from ..models.head import Head
from ..progress import Progress, silent
from .divergence import losses_of

Score = Callable[[Tensor, Tensor], Tensor]
"""Of the logits [tokens, vocabulary] float32, which it may overwrite, and the tokens that came [tokens] int64: numbers
[tokens, …] float64."""

BATCH_TOKENS = 4096
LENGTH = 512
"""Default number of tokens of a sequence."""
DAMAGED = "the checkpoint is damaged or its scales overflow: run slideconvert verify on it"
"""The way out if a model does not compute numbers."""


def perplexity(model: torch.nn.Module, sequences: Tensor, progress: Progress = silent) -> float:
    """sequences [n, length] int64 -> exp(mean cross-entropy of tokens 2 … length, each given all before it).

    Runs the model as `token_numbers`.
    """

    def score(logits: Tensor, wanted: Tensor) -> Tensor:
        return losses_of(logits, wanted)[0]

    return math.exp(float(token_numbers(model, sequences, score, progress=progress).mean()))


def token_numbers(
    model: torch.nn.Module,
    sequences: Tensor,
    score: Score,
    progress: Progress = silent,
) -> Tensor:
    """sequences [n, length] int64 -> what `score` says of tokens 2 … length, [n, length - 1, …] float64 on the CPU.

    score: of pieces of these tokens, in their order.

    The model runs in its own dtype and on its own device, at most BATCH_TOKENS tokens or one sequence at a time, and
    head.PIECE logits. SlideConvertError if a number is not finite: such a model is broken, and a mean would hide that.
    """
    device = next(model.parameters()).device
    batch, each = max(1, BATCH_TOKENS // sequences.shape[1]), sequences.shape[1] - 1
    head, found = Head(model), []

    def of_piece(hidden: Tensor, wanted: Tensor) -> Tensor:
        return score(head.logits(hidden), wanted)

    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            progress("evaluate", start, len(sequences))
            tokens = sequences[start : start + batch].to(device)
            stop = start + len(tokens)
            hidden = head.hidden(tokens)[:, :-1].flatten(0, 1)
            numbers = head.losses(of_piece, hidden, tokens[:, 1:].flatten())
            if not torch.isfinite(numbers).all():
                what = "the loss is" if numbers.dim() == 1 else "the loss or the divergence from the base is"
                raise SlideConvertError(f"{what} not finite in sequences {start} … {stop - 1}", hint=DAMAGED)
            found.append(numbers.cpu())
    progress("evaluate", len(sequences), len(sequences))
    return torch.cat(found).view(len(sequences), each, *found[0].shape[1:])
