"""Log-likelihoods of answers after their contexts, as tasks ask for them.

Only the tokens of answers go through the head, in pieces: lm-eval computes the logits of every token of a batch and
their logarithms, 1.6 GB for 4,096 tokens of 49,152 words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..models.head import Head

logger = logging.getLogger("lm_eval.answers")  # its warnings are reported with those of lm-eval


def answer_scores(
    head: Head, requests: Sequence[tuple[list[int], list[int]]], *, batch: int, most: int, device: torch.device | str
) -> Iterator[tuple[int, float, bool]]:
    """requests: (context, answer) in tokens -> (number of the request, log-likelihood of the answer in nats, whether
    each of its tokens is the most likely one).

    Long texts come first, `batch` at a time. Requests that differ only in the last token share a text. most: tokens
    that the model can read; longer contexts lose their beginnings, and a warning says so. InputError for an answer
    without tokens, or with more than that.
    """
    texts: dict[tuple[int, ...], list[int]] = {}
    for number, (context, answer) in enumerate(requests):
        if not 0 < len(answer) <= most:
            raise InputError(f"an answer has {len(answer)} tokens; 1 to {most} can be scored with this model")
        if len(context) + len(answer) > most + 1:
            said = f"A context of {len(context)} and an answer of {len(answer)} tokens exceed the {most} of the model"
            logger.warning("%s. Truncating the beginning.", said)
        # The last token is predicted from those before it, and predicts nothing.
        texts.setdefault(tuple((context + answer)[-most - 1 : -1]), []).append(number)
    order = sorted(texts, key=lambda text: -len(text))
    for start in range(0, len(order), batch):
        read = order[start : start + batch]
        # Models are causal: padding behind a text changes nothing in it.
        padded = pad_sequence([torch.tensor(text) for text in read], batch_first=True)
        asked = [(row, number) for row, text in enumerate(read) for number in texts[text]]
        lengths = [len(requests[number][1]) for _, number in asked]
        wanted = torch.tensor([token for _, number in asked for token in requests[number][1]], device=device)
        with torch.inference_mode():
            hidden = head.hidden(padded.to(device))
            rows = [hidden[row, : len(read[row])] for row, _ in asked]
            states = torch.cat([row[-n:] for row, n in zip(rows, lengths, strict=True)])
            scores = head.losses(partial(_score, head), states, wanted).split(lengths)
        for (_, number), found in zip(asked, scores, strict=True):
            yield number, float(found[:, 0].double().sum()), bool(found[:, 1].all())


def _score(head: Head, states: Tensor, wanted: Tensor) -> Tensor:
    """states [tokens, hidden], wanted [tokens] -> [tokens, 2]: the log-likelihood of what is wanted, and whether it is
    the most likely token."""
    logits = head.logits(states)
    likely = -torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return torch.stack([likely, logits.argmax(1) == wanted], 1)
