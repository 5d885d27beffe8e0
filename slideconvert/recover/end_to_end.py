"""End-to-end recovery: train the remaining weights of all layers so that the model predicts what the dense one does.

In group schemes, only scales and zero points train; codes are frozen and packed (GQSA's E2E-OQP, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..core.quantize import Weight
from ..models.layered import LayeredModel
from .options import Curve, Schedule, TrainingOptions
from .trainable import Trainable, trained_of
from .training import train


def recover_end_to_end(
    student: LayeredModel,
    trained: Mapping[str, Trainable],
    dense: Callable[[Tensor], Tensor] | None,
    tokens: Tensor,
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    options: TrainingOptions,
) -> tuple[dict[str, Weight], Curve]:
    """The trained weights by module name, in CPU memory, and the held-out loss per token in nats: the Kullback-Leibler
    divergence from the dense model, or without it the cross-entropy of the next token.

    trained: the student's compressed linears, by module name. dense(numbers): the last hidden states [n, length,
    hidden] of the dense model for sequences with these numbers [n] int64; both models have the same head, which does
    not train. tokens [sequences, length] int64; fitted, held: numbers of sequences. The logits of one piece
    (models/head.py) are in memory at once.
    """
    head = student.head

    def entropy(hidden: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(head.logits(hidden), wanted, reduction="none")

    def divergence(hidden: Tensor, states: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = head.logits(states).log_softmax(-1)
        given = head.logits(hidden).log_softmax(-1)
        return torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)

    def read(numbers: Tensor) -> tuple[Tensor, Tensor]:
        states = student.embed(tokens[numbers])
        return states, dense(numbers) if dense else tokens[numbers].to(states.device)

    def loss(states: Tensor, known: Tensor) -> Tensor:
        hidden = student.hidden(states)
        if dense is None:
            return head.losses(entropy, hidden[:, :-1].flatten(0, 1), known[:, 1:].flatten()).mean()
        return head.losses(divergence, hidden.flatten(0, 1), known.flatten(0, 1)).mean()

    curve = train(trained_of(trained), loss, fitted, held, schedule, options, read)
    return {name: linear.weight().to("cpu") for name, linear in trained.items()}, curve
