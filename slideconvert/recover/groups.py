"""Linears of group schemes in training: they hold only the kept groups.

Both stages of GQSA (sections 3.3 and 3.4) build the weight from its kept groups [n, G], each with a scale s and a zero
point z. Pruned groups need no gradients, moments or memory but a bit for their place, and no mask; only linears pruned
to 2:L have a mask, since their zeros are inside groups.

    BQPO      latent weights w, s and z train; codes = clamp(round(w / s) + z), with straight-through rounding
    E2E-OQP   the codes are frozen and packed as stored, and s and z train

Stored zero points are integers: they train as floats with straight-through rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.quantize import QuantizedWeight
from ..kernels.packing import packed_bytes, unpacked_bytes
from .rebuilt import Places, RebuiltLinear

LEAST_SCALE = 1e-15
"""Lower limit of trained scales, so that no weight changes its sign; gradients divide by the square of the scale."""
SCALE_RATE, ZERO_RATE = 1.0, 1.0
"""Learning rates of scales and zero points relative to the schedule's, in units of the scales' rms and of one code."""


def straight(rounded: Tensor, exact: Tensor) -> Tensor:
    """The value of `rounded`, the gradient of `exact`."""
    return rounded + (exact - exact.detach())


def bfloat16_scale(scale: Tensor) -> Tensor:
    """The stored value of a scale, with a straight-through gradient."""
    scale = scale.clamp(min=LEAST_SCALE)
    return straight(scale.detach().to(torch.bfloat16).float(), scale)


class GroupTrainable(RebuiltLinear):
    """y = x Wᵀ + bias, with W built from its kept groups, those that are not all zeros; the base of both stages.

    scale, zero [n, 1] float32 train; zero is None for symmetric schemes. mask [n, G] bool: the kept weights of linears
    pruned to 2:L; None for others, where zeros in kept groups may change.
    """

    mask: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, *, fixed_zeros: bool = False) -> None:
        super().__init__()
        self.shape, self.scheme = weight.codes.shape, weight.scheme
        self.places = Places((weight.codes.reshape(-1, self.scheme.group) != 0).any(1))
        groups = self.places.indices()
        self.scale = nn.Parameter(weight.scale.float().flatten()[groups][:, None])
        self.zero = None if weight.zero is None else nn.Parameter(weight.zero.float().flatten()[groups][:, None])
        self.register_buffer("mask", weight.codes.view(-1, self.scheme.group)[groups] != 0 if fixed_zeros else None)
        self.bias = bias

    @property
    def groups(self) -> Tensor:
        """Indices [n] int64 of the kept ones of N · K / G groups, row by row."""
        return self.indices().long()

    @property
    def variables(self) -> tuple[nn.Parameter, ...]:
        return (self.scale,) if self.zero is None else (self.scale, self.zero)

    @property
    def trained(self) -> list[tuple[nn.Parameter, float]]:
        """The variables, each with the rms by which its steps are measured."""
        rms = float(self.scale.detach().square().mean()) ** 0.5 if len(self.scale) else 1.0
        zero = [] if self.zero is None else [(self.zero, ZERO_RATE)]
        return [(self.scale, SCALE_RATE * rms), *zero]

    def rounded_zero(self) -> Tensor | float:
        """Integers [n, 1] float32 with a straight-through gradient."""
        if self.zero is None:
            return float(self.scheme.middle)
        inside = self.zero.clamp(0, self.scheme.top)
        return straight(inside.detach().round(), inside)

    def stored_codes(self) -> Tensor:
        """[n, G] float32, from 0 to the scheme's top."""
        raise NotImplementedError

    def kept_weights(self) -> Tensor:
        """The kept groups [n, G] float32 of W, with gradients."""
        raise NotImplementedError

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        size = self.scheme.group
        whole = torch.zeros(self.shape.numel() // size, size, dtype=dtype, device=self.scale.device)
        return whole.index_copy_(0, self.groups, self.kept_weights().to(dtype)).view(self.shape)

    def gradients(self, of_weight: Tensor) -> tuple[Tensor, ...]:
        of_groups = of_weight.view(-1, self.scheme.group)[self.groups].float()
        with torch.enable_grad():
            return torch.autograd.grad(self.kept_weights(), self.variables, of_groups)

    def masked(self, weights: Tensor) -> Tensor:
        """Weights or codes [n, G], zero where the mask is False."""
        return weights if self.mask is None else weights * self.mask

    @torch.no_grad()
    def weight(self) -> QuantizedWeight:
        """The weight in its stored form."""
        rows, columns = self.shape
        zero, count = self.rounded_zero(), columns // self.scheme.group
        codes = torch.zeros(rows * count, self.scheme.group, device=self.scale.device)
        codes[self.groups] = self.masked(self.stored_codes() - zero)
        scale = torch.ones(rows * count, dtype=torch.bfloat16, device=self.scale.device)
        scale[self.groups] = bfloat16_scale(self.scale).to(torch.bfloat16)[:, 0]
        points = None
        if isinstance(zero, Tensor):
            points = torch.full((rows * count,), self.scheme.middle, dtype=torch.uint8, device=self.scale.device)
            points[self.groups] = zero.to(torch.uint8)[:, 0]
            points = points.view(rows, count)
        made = codes.view(rows, columns).to(self.scheme.torch_dtype)
        return QuantizedWeight(made, scale.view(rows, count), self.scheme, points)


class TrainedGroups(GroupTrainable):
    """BQPO: the kept weights train together with their scales and zero points."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, *, fixed_zeros: bool = False) -> None:
        super().__init__(weight, bias, fixed_zeros=fixed_zeros)
        self.latent = nn.Parameter(weight.dequantize().view(-1, self.scheme.group)[self.groups])

    @property
    def variables(self) -> tuple[nn.Parameter, ...]:
        return self.latent, *super().variables

    @property
    def trained(self) -> list[tuple[nn.Parameter, float]]:
        count = self.latent.numel() if self.mask is None else int(self.mask.sum())
        rms = (float(self.latent.detach().square().sum()) / count) ** 0.5 if count else 1.0
        return [(self.latent, rms), *super().trained]

    def _codes(self, scale: Tensor, zero: Tensor | float) -> Tensor:
        """The latent weights in units of their scale, rounded straight through and clamped to the range."""
        exact = self.latent / scale
        moved = straight(exact.detach().round(), exact) + zero
        return moved.clamp(0, self.scheme.top)

    @torch.no_grad()
    def stored_codes(self) -> Tensor:
        return self._codes(bfloat16_scale(self.scale), self.rounded_zero())

    def kept_weights(self) -> Tensor:
        scale, zero = bfloat16_scale(self.scale), self.rounded_zero()
        return self.masked((self._codes(scale, zero) - zero) * scale)


class FrozenGroups(GroupTrainable):
    """E2E-OQP: packed codes are frozen; their scales and zero points train."""

    packed: Tensor

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, *, fixed_zeros: bool = False) -> None:
        super().__init__(weight, bias, fixed_zeros=fixed_zeros)
        groups = weight.codes.view(-1, self.scheme.group)[self.groups].int()
        zero = self.scheme.middle if weight.zero is None else weight.zero.int().flatten()[self.groups][:, None]
        self.register_buffer("packed", packed_bytes((groups + zero).to(torch.uint8), self.scheme.bits))

    def stored_codes(self) -> Tensor:
        return unpacked_bytes(self.packed, self.scheme.bits).float()

    def kept_weights(self) -> Tensor:
        return self.masked(self.stored_codes() - self.rounded_zero()) * bfloat16_scale(self.scale)
