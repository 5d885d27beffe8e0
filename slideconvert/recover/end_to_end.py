"""End-to-end recovery: train all survivors at once so that the model's predictions stay those of the dense model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..quantize import Weight
from .trainable import make_trainable, trained_of
from .training import Curve, Schedule, train

RATE = 0.003
"""Of Schedule."""


def recover_end_to_end(
    student: nn.Module,
    teacher: nn.Module,
    weights: dict[str, Weight],
    masters: dict[str, Tensor | None],
    tokens: Tensor,
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    *,
    micro: int | None = None,
    offload: bool = False,
    dtype: torch.dtype = torch.float32,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Weight], Curve]:
    """weights and masters (see SurvivorLinear) by module name -> the trained weights, and the held-out Kullback-Leibler
    divergence per token, in nats.

    student, teacher: causal language models of the same architecture; the student's linears named in `weights` are
    replaced. tokens [windows, length]. Gradient checkpointing keeps one layer's activations.
    """
    student.requires_grad_(False)
    trained = make_trainable(student, weights, masters)
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
        tell=tell,
    )
    return {name: linear.weight() for name, linear in trained.items()}, curve
