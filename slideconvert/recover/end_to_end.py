"""End-to-end recovery: train the remaining weights of all layers so that the model predicts what the dense one does.

In group schemes, only scales and zero points train; codes are frozen and packed (GQSA's E2E-OQP, section 3.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantize import Weight
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
    activations.
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

    def loss(numbers: Tensor) -> Tensor:
        inputs = tokens[numbers]
        if teacher is None:
            logits = student(input_ids=inputs, use_cache=False).logits[:, :-1].float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten())
        with torch.no_grad():
            wanted = teacher(input_ids=inputs, use_cache=False).logits.float().log_softmax(-1)
        given = student(input_ids=inputs, use_cache=False).logits.float().log_softmax(-1)
        return torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="sum") / inputs.numel()

    curve = train(trained_of(trained), loss, fitted, held, schedule, options)
    return {name: linear.weight() for name, linear in trained.items()}, curve
