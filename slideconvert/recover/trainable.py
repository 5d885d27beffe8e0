"""A linear whose remaining weights train through the rounding of serving, while pruned weights stay zero."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..core.quantize import QuantizedWeight, Weight
from ..core.ternary import ternarize
from ..core.weights import floats
from .groups import FrozenGroups, GroupTrainable, TrainedGroups
from .rebuilt import Places, RebuiltLinear

MARGIN = 0.02
"""The least initial distance of a latent weight from the border of its code, in units of the scale."""


class SurvivorLinear(RebuiltLinear):
    """y = x Ŵᵀ + bias with Ŵ = the kept latent weights in their places, rounded as it will be served.

    The gradient passes the rounding unchanged (straight-through estimator). Ŵ is equal to `weight` at first; its zeros
    stay zero. Scales are fixed, except for ternary weights, where a factor of the scale (gain) trains as well, since
    three codes leave little else to train.

    latent [n] float32: the latent values of the n non-zero weights, row by row. latent [out, in] as an argument: the
    latent weights of a ternary linear, which show the codes that are close to a change; those whose codes a solver has
    changed start just inside their code. Without it, latent weights start at their codes.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, latent: Tensor | None = None) -> None:
        super().__init__()
        start = floats(weight)
        self.places, self._shape = Places(start != 0), start.shape
        whole = start if latent is None else latent_weight(weight, latent.to(start.device))
        self.latent = nn.Parameter(whole.flatten()[self.places.indices()])
        self._scale, self._scheme, self._dtype = None, None, start.dtype
        self.gain: nn.Parameter | None = None
        if isinstance(weight, QuantizedWeight):
            self._scale, self._scheme = weight.scale, weight.scheme
            if weight.scheme.ternary:
                self.gain = nn.Parameter(torch.ones_like(weight.scale, dtype=torch.float32))
        else:
            self._dtype = weight.dtype
        self.bias = bias

    @property
    def variables(self) -> tuple[nn.Parameter, ...]:
        return (self.latent,) if self.gain is None else (self.latent, self.gain)

    @property
    def trained(self) -> list[tuple[nn.Parameter, float]]:
        """The variables, each with the rms (root mean square) that scales its learning rate."""
        latent = self.latent.detach()
        rms = float(latent.square().sum() / latent.count_nonzero().clamp(min=1)) ** 0.5
        return [(self.latent, rms), *([] if self.gain is None else [(self.gain, 1.0)])]

    @torch.no_grad()
    def weight(self) -> Weight:
        """The weight in its stored form: codes with the initial scale times the gain, or floats."""
        whole = self._whole()
        if self._scheme is None or self._scale is None:
            return whole.to(self._dtype)
        scale = self._scale if self.gain is None else self._scale.float() * self.gain
        return QuantizedWeight(self._scheme.to_codes(whole.div_(self._scale.float())), scale, self._scheme)

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        rounded = self._rounded()
        return (rounded if self.gain is None else rounded.mul_(self.gain)).to(dtype)

    def _whole(self) -> Tensor:
        """The latent weights in their places [out, in] float32, not rounded."""
        whole = torch.zeros(self._shape.numel(), device=self.latent.device)
        return whole.scatter_(0, self.indices().long(), self.latent.detach()).view(self._shape)

    def _rounded(self) -> Tensor:
        """What the stored form stands for, without the gain: [out, in], float32 where it has codes."""
        whole = self._whole()
        if self._scheme is None or self._scale is None:
            return whole.to(self._dtype)
        scale = self._scale.float()
        return self._scheme.multiply(self._scheme.nearest(whole.div_(scale)), scale)

    @torch.no_grad()
    def gradients(self, of_weight: Tensor) -> tuple[Tensor, ...]:
        if self.gain is None:
            return (of_weight.flatten().index_select(0, self.indices()).float(),)
        of_weight = of_weight.float()
        of_gain = (of_weight * self._rounded()).sum(1, keepdim=True)
        return (of_weight * self.gain).flatten().index_select(0, self.indices()), of_gain


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


def make_trainable(
    parent: nn.Module, compressed: Compressed, *, frozen: bool = False, resident: bool = True
) -> dict[str, Trainable]:
    """Put a Trainable at each path below `parent`; return them by path.

    frozen: codes in groups stay, and only their scales and zero points train. resident: of RebuiltLinear.
    """
    made: dict[str, Trainable] = {}
    for path, weight in compressed.weights.items():
        bias = getattr(parent.get_submodule(path), "bias", None)
        if isinstance(weight, QuantizedWeight) and weight.scheme.grouped:
            stage = FrozenGroups if frozen else TrainedGroups
            made[path] = stage(weight, bias, fixed_zeros=path in compressed.fixed_zeros)
        else:
            made[path] = SurvivorLinear(weight, bias, compressed.latent.get(path))
        made[path].resident = resident
        made[path].release_after_backward()
        parent.set_submodule(path, made[path])
    return made


def trained_of(linears: Mapping[str, Trainable]) -> list[tuple[nn.Parameter, float]]:
    """All parameters that train, with their rms."""
    return [parameter for linear in linears.values() for parameter in linear.trained]
