"""A linear whose remaining weights train through the rounding of serving, while pruned weights stay zero."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core.quantize import QuantizedWeight, Weight
from ..core.ternary import ternarize
from ..core.weights import floats
from .groups import FrozenGroups, GroupTrainable, TrainedGroups

MARGIN = 0.02
"""The least initial distance of a latent weight from the border of its code, in units of the scale."""


class SurvivorLinear(nn.Module):
    """y = x Ŵᵀ + bias with Ŵ = the masked latent weight, rounded as it will be served.

    The gradient passes the rounding unchanged (straight-through estimator), and is zero outside the mask. Ŵ is equal to
    `weight` at first. Scales are fixed, except for ternary weights, where a factor of the scale (gain) trains as well,
    since three codes leave little else to train.

    latent [out, in]: the latent weights of a ternary linear, which show the codes that are close to a change; those
    whose codes a solver has changed start just inside their code. Without it, latent weights start at their codes.
    """

    mask: Tensor
    scale: Tensor

    def __init__(self, weight: Weight, bias: Tensor | None, latent: Tensor | None = None) -> None:
        super().__init__()
        start = floats(weight)
        self.latent = nn.Parameter(start.clone() if latent is None else latent_weight(weight, latent.to(start.device)))
        self.register_buffer("mask", (start != 0).float())
        self.start = weight
        self.gain: nn.Parameter | None = None
        if isinstance(weight, QuantizedWeight):
            self.register_buffer("scale", weight.scale.float())
            if weight.scheme.ternary:
                self.gain = nn.Parameter(torch.ones_like(self.scale))
        self.bias = bias

    @property
    def trained(self) -> list[tuple[nn.Parameter, float]]:
        """The parameters that train, each with the rms (root mean square) that scales its learning rate."""
        latent = self.latent.detach()
        rms = float(latent.square().sum() / latent.count_nonzero().clamp(min=1)) ** 0.5
        return [(self.latent, rms), *([] if self.gain is None else [(self.gain, 1.0)])]

    @torch.no_grad()
    def weight(self) -> Weight:
        """The weight in its stored form: codes with the initial scale times the gain, or floats."""
        made = self._rounded(self.latent * self.mask)
        if self.gain is None or not isinstance(made, QuantizedWeight):
            return made
        return replace(made, scale=self.scale * self.gain)

    @torch.no_grad()
    def _rounded(self, kept: Tensor) -> Weight:
        """The stored form of the latent weight, without the gain."""
        if isinstance(self.start, QuantizedWeight):
            return replace(self.start, codes=self.start.scheme.to_codes(kept / self.scale))
        return kept.to(self.start.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        kept = self.latent * self.mask
        weight = floats(self._rounded(kept)) + (kept - kept.detach())  # zero, but for the gradient
        if self.gain is not None:
            weight = weight * self.gain
        return nn.functional.linear(inputs, weight, self.bias)


def latent_weight(weight: Weight, latent: Tensor) -> Tensor:
    """latent [out, in] -> latent weights [out, in] float32 that round to the codes of `weight`, in its unit."""
    assert isinstance(weight, QuantizedWeight)
    sign = weight.codes.float()
    size = (latent.float() / ternarize(latent).scale * sign).clamp(min=0.5 + MARGIN)
    return size * sign * weight.scale.float()


Trainable = SurvivorLinear | GroupTrainable
"""A linear in training: `trained` are its parameters, `weight()` returns the stored form."""


@dataclass(frozen=True)
class Compressed:
    """The compressed linears of a module, by path. latent: what ternary weights were rounded from, as SurvivorLinear
    takes it. fixed_zeros: paths of linears whose zeros all stay zero, by a 2:L pattern; without codes in groups all
    zeros stay anyway."""

    weights: Mapping[str, Weight]
    latent: Mapping[str, Tensor | None] = field(default_factory=dict)
    fixed_zeros: Container[str] = ()


def make_trainable(parent: nn.Module, compressed: Compressed, *, frozen: bool = False) -> dict[str, Trainable]:
    """Put a Trainable at each path below `parent`; return them by path.

    frozen: codes in groups stay, and only their scales and zero points train.
    """
    made: dict[str, Trainable] = {}
    for path, weight in compressed.weights.items():
        bias = getattr(parent.get_submodule(path), "bias", None)
        if isinstance(weight, QuantizedWeight) and weight.scheme.grouped:
            stage = FrozenGroups if frozen else TrainedGroups
            made[path] = stage(weight, bias, fixed_zeros=path in compressed.fixed_zeros)
        else:
            made[path] = SurvivorLinear(weight, bias, compressed.latent.get(path))
        parent.set_submodule(path, made[path])
    return made


def trained_of(linears: Mapping[str, Trainable]) -> list[tuple[nn.Parameter, float]]:
    """All parameters that train, with their rms."""
    return [parameter for linear in linears.values() for parameter in linear.trained]
