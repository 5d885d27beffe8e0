"""Block recovery: train the remaining weights of a compressed layer towards the output of the dense layer.

The input of the layer comes from the compressed layers before it, its target from the dense model, so that each layer
also compensates the error of its predecessors (EfficientQAT's Block-AP, arXiv 2407.11062, section 3.2).

An error counts relative to the hidden state of its token, since all that reads the states normalizes each of them. In
pretrained models the first token of a sequence has states of a hundred times the size of others ("massive
activations", arXiv 2402.17762), and in some layers 99.9 % of all energy: absolute errors would train for it alone.
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
    """The trained weights by submodule, and the held-out loss as a share of what the layer changes.

    Both are squares relative to those of the token's target, means over all tokens: of the error, and of the change
    from input to target.

    inputs, targets: numbers of this rank's sequences [n] int64 -> [n, length, hidden] float32. fitted, held: numbers of
    all ranks' sequences.
    micro: sequences that run through the layer at once.
    """
    trained = make_trainable(layer.module, compressed)
    own, _ = ranks.share(held)
    parts = own.split(schedule.batch) if len(own) else ()
    change, held_by_all = ranks.sums(
        sum(float(relative_error(inputs(part), targets(part))) * len(part) for part in parts), len(own)
    )
    change /= held_by_all

    def read(numbers: Tensor) -> tuple[Tensor, Tensor]:
        return inputs(numbers), targets(numbers)

    def loss(given: Tensor, wanted: Tensor) -> Tensor:
        return relative_error(layer.run(given), wanted) / change

    options = TrainingOptions(micro, dtype=layer.dtype)
    curve = train(trained_of(trained), loss, fitted, held, schedule, options, read)
    return {submodule: linear.weight() for submodule, linear in trained.items()}, curve


def relative_error(states: Tensor, targets: Tensor) -> Tensor:
    """states, targets [n, length, hidden] float32 -> the mean over tokens of |state - target|² / |target|²."""
    errors, energies = (states - targets).square().sum(-1), targets.square().sum(-1)
    return (errors / energies.clamp(min=torch.finfo(energies.dtype).tiny)).mean()
