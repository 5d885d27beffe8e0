"""Block recovery: train a compressed layer's survivors against what the dense layer gives for the dense input.

The layer's input is what the compressed prefix leaves, its target what the dense model has behind the same layer, so
that each layer also undoes what those before it did (EfficientQAT's Block-AP, arXiv 2407.11062, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor

from ..core.quantize import Weight
from ..models.decoder import Layer
from .trainable import make_trainable, trained_of
from .training import Curve, Schedule, train


def recover_block(
    layer: Layer,
    weights: dict[str, Weight],
    latent: dict[str, Tensor | None],
    inputs: Callable[[Tensor], Tensor],
    targets: Callable[[Tensor], Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    masked: Container[str] = (),
) -> tuple[dict[str, Weight], Curve]:
    """weights and latent weights (see SurvivorLinear) by submodule -> the trained ones, and the held-out loss relative
    to the energy of the targets' change. masked: see make_trainable.

    inputs, targets: numbers of windows [n] int64 -> [n, length, hidden] float32.
    """
    trained = make_trainable(layer.module, weights, latent, masked=masked)
    energy = sum(
        float((targets(part) - inputs(part)).square().mean()) * len(part) for part in held.split(schedule.batch)
    )
    energy /= len(held)

    def loss(windows: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(layer.run(inputs(windows)), targets(windows)) / energy

    curve = train(trained_of(trained), loss, fitted, held, schedule, dtype=layer.dtype)
    return {submodule: linear.weight() for submodule, linear in trained.items()}, curve
