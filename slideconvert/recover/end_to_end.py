"""End-to-end recovery: train all survivors at once so that the model's predictions stay those of the dense model.

Of grouped schemes only scales and zero points train, the codes being frozen and packed (GQSA's E2E-OQP, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.quantize import Weight
from .trainable import make_trainable, trained_of
from .training import Curve, Schedule, train


def recover_end_to_end(
    student: nn.Module,
    teacher: nn.Module | None,
    weights: dict[str, Weight],
    latent: dict[str, Tensor | None],
    tokens: Tensor,
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    *,
    masked: Container[str] = (),
    micro: int | None = None,
    offload: bool = False,
    dtype: torch.dtype = torch.float32,
    keep: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Weight], Curve]:
    """weights and latent weights (see SurvivorLinear) by module name -> the trained weights, and the held-out loss per
    token in nats: the Kullback-Leibler divergence from the teacher, without one the cross-entropy of the next token.

    student, teacher: causal language models of the same architecture; the student's linears named in `weights` are
    replaced. masked: see make_trainable. keep: see training.train. tokens [windows, length]. Gradient checkpointing
    keeps one layer's activations.
    """
    student.requires_grad_(False)
    trained = make_trainable(student, weights, latent, masked=masked, frozen=True)
    student.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    student.train()  # checkpointing works in no other mode; whatever is random in it is turned off
    module: Any
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0

    def loss(windows: Tensor) -> Tensor:
        inputs = tokens[windows]
        if teacher is None:
            logits = student(input_ids=inputs, use_cache=False).logits[:, :-1].float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten())
        with torch.no_grad():
            wanted = teacher(input_ids=inputs, use_cache=False).logits.float().log_softmax(-1)
        given = student(input_ids=inputs, use_cache=False).logits.float().log_softmax(-1)
        return torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="sum") / inputs.numel()

    curve = train(
        trained_of(trained),
        loss,
        fitted,
        held,
        schedule,
        micro=micro,
        offload=offload,
        dtype=dtype,
        keep=keep,
        tell=tell,
    )
    return {name: linear.weight() for name, linear in trained.items()}, curve
