"""A linear whose surviving weights train while the pruned ones stay zero and the rounding of serving is in the loop."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..measure import floats
from ..quantize import QuantizedWeight, Weight, to_codes


class SurvivorLinear(nn.Module):
    """y = x Ŵᵀ + bias with Ŵ = the latent weight on its mask, rounded as it will be served.

    The gradient passes the rounding as if it were not there (straight through), and is zero off the mask. Starts at
    `weight` exactly: codes are the latent weights' nearest codes. Scales stay as they are.
    """

    mask: Tensor
    scale: Tensor

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        super().__init__()
        start = floats(weight)
        self.latent = nn.Parameter(start.clone())
        self.register_buffer("mask", (start != 0).float())
        self.start = weight
        if isinstance(weight, QuantizedWeight):
            self.register_buffer("scale", weight.scale.float())
        self.bias = bias

    @torch.no_grad()
    def weight(self) -> Weight:
        """What would be stored now: codes with the scale of the start, or floats of its dtype."""
        kept = self.latent * self.mask
        if isinstance(self.start, QuantizedWeight):
            return replace(self.start, codes=to_codes(kept / self.scale, self.start.scheme))
        return kept.to(self.start.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        kept = self.latent * self.mask
        with torch.no_grad():
            off = floats(self.weight()).sub_(kept)
        return nn.functional.linear(inputs, kept + off, self.bias)


def make_trainable(parent: nn.Module, weights: dict[str, Weight]) -> dict[str, SurvivorLinear]:
    """Put a SurvivorLinear at each path of `weights` below `parent`; give them by path."""
    made = {}
    for path, weight in weights.items():
        made[path] = SurvivorLinear(weight, getattr(parent.get_submodule(path), "bias", None))
        parent.set_submodule(path, made[path])
    return made
