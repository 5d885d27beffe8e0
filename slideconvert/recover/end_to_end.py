"""End-to-end recovery: train the remaining weights of all layers so that the model predicts what the dense one does.

In group schemes, only scales and zero points train; codes are frozen and packed (GQSA's E2E-OQP, section 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantize import Weight
from ..models.head import Head
from .trainable import Compressed, make_trainable, trained_of
from .training import Curve, Schedule, TrainingOptions, train


def recover_end_to_end(
    student: nn.Module,
    teacher: nn.Module | None,
    compressed: Compressed,
    tokens: Tensor,
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    options: TrainingOptions,
) -> tuple[dict[str, Weight], Curve]:
    """The trained weights by module name, and the held-out loss per token in nats: the Kullback-Leibler divergence from
    the teacher, or without a teacher the cross-entropy of the next token.

    student, teacher: causal language models of the same architecture; the student's compressed linears are replaced.
    tokens [sequences, length] int64; fitted, held: numbers of sequences. Gradient checkpointing keeps one layer's
    activations, and the logits of one piece (models/head.py).
    """
    student.requires_grad_(False)
    trained = make_trainable(student, compressed, frozen=True)
    student.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    student.train()  # gradient checkpointing requires this mode; the loop below disables dropout
    module: Any
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0

    head, wanted_head = Head(student), Head(teacher) if teacher else None

    def entropy(hidden: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(head.logits(hidden), wanted, reduction="none")

    def divergence(hidden: Tensor, dense: Tensor) -> Tensor:
        assert wanted_head is not None
        with torch.no_grad():
            wanted = wanted_head.logits(dense).log_softmax(-1)
        given = head.logits(hidden).log_softmax(-1)
        return torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="none").sum(-1)

    def loss(numbers: Tensor) -> Tensor:
        inputs = tokens[numbers]
        if wanted_head is None:
            hidden = head.hidden(inputs)[:, :-1].flatten(0, 1)
            return head.losses(entropy, hidden, inputs[:, 1:].flatten()).mean()
        with torch.no_grad():
            dense = wanted_head.hidden(inputs).flatten(0, 1)
        return head.losses(divergence, head.hidden(inputs).flatten(0, 1), dense).mean()

    curve = train(trained_of(trained), loss, fitted, held, schedule, options)
    return {name: linear.weight() for name, linear in trained.items()}, curve
