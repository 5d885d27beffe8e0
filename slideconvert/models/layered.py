"""A whole model out of the parts of a Decoder, trained with one layer's activations in memory.

Its embedding stays in CPU memory, its head in the dtype in which the model runs. Each layer is recomputed in the
backward pass (gradient checkpointing, arXiv 1604.06174), a few sequences at a time; only hidden states between layers
are kept, on the device or in CPU memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .decoder import Layer
from .head import Head


class LayeredModel:
    """embed: tokens [sequences, length] int64 -> hidden states before the first layer, on the device. layers, norm,
    head: the rest of the model. at_once: sequences that run through a layer together. offload: keep hidden states
    between layers in CPU memory until the backward pass. left(layer): called after all sequences passed a layer."""

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        layers: Sequence[Layer],
        norm: nn.Module,
        head: Head,
        *,
        at_once: int,
        offload: bool = False,
        left: Callable[[Layer], None] = lambda layer: None,
    ) -> None:
        self.layers, self.head = layers, head
        self.embed, self._norm, self._at_once, self._offload, self._left = embed, norm, at_once, offload, left

    def hidden(self, states: Tensor) -> Tensor:
        """states [sequences, length, hidden], of `embed` -> the last hidden states, float32 of the same shape."""
        with self._keeping(states.device):
            for layer in self.layers:
                run = _recomputed(layer) if torch.is_grad_enabled() else layer.run
                states = torch.cat([run(part) for part in states.split(self._at_once)])
                self._left(layer)
        normed: Tensor = self._norm(states)
        return normed

    def _keeping(self, device: torch.device) -> AbstractContextManager[object]:
        if not (self._offload and torch.is_grad_enabled()):
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")


def _recomputed(layer: Layer) -> Callable[[Tensor], Tensor]:
    def run(states: Tensor) -> Tensor:
        out: Tensor = checkpoint(layer.run, states, use_reentrant=False, preserve_rng_state=False)
        return out

    return run
