"""Block recovery: train the remaining weights of a compressed layer towards the output of the dense layer.

The input of the layer comes from the compressed layers before it, its target from the dense model, so that each layer
also compensates the error of its predecessors (EfficientQAT's Block-AP, arXiv 2407.11062, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import ranks
from ..core.quantize import Weight
from ..models.decoder import Layer
from .options import Curve, Schedule, TrainingOptions
from .trainable import Compressed, make_trainable, trained_of
from .training import train


def recover_block(
    layer: Layer,
    compressed: Compressed,
    inputs: Callable[[Tensor], Tensor],
    targets: Callable[[Tensor], Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    micro: int,
) -> tuple[dict[str, Weight], Curve]:
    """The trained weights by submodule, and the held-out loss relative to the energy of the targets' change.

    inputs, targets: numbers of this rank's sequences [n] int64 -> [n, length, hidden] float32. fitted, held: numbers of
    all ranks' sequences.
    micro: sequences that run through the layer at once.
    """
    trained = make_trainable(layer.module, compressed)
    own, _ = ranks.share(held)
    parts = own.split(schedule.batch) if len(own) else ()
    energy, held_by_all = ranks.sums(
        sum(float((targets(part) - inputs(part)).square().mean()) * len(part) for part in parts), len(own)
    )
    energy /= held_by_all

    def read(numbers: Tensor) -> tuple[Tensor, Tensor]:
        return inputs(numbers), targets(numbers)

    def loss(given: Tensor, wanted: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(layer.run(given), wanted) / energy

    options = TrainingOptions(micro, dtype=layer.dtype)
    curve = train(trained_of(trained), loss, fitted, held, schedule, options, read)
    return {submodule: linear.weight() for submodule, linear in trained.items()}, curve
