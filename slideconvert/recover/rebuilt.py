"""Linears in training that keep no dense weight: it is rebuilt from what is kept in every pass.

Only kept weights have latent values, gradients and moments, and only their places are stored besides, one bit each. The
dense weight, in the dtype in which the model runs, exists while a layer is passed: it serves all sequences of a batch,
and is released when its gradient is complete, or by `release`. At 2:4, AdamW in float32 thus takes 6 bytes for a weight
of the model, as much as bfloat16 masters with moments of 8 bits take without the compaction. A GPU spends most of its
time for a small model in starting kernels, half of them for this: such linears keep their places as indices.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Places:
    """The True elements of a mask, one bit for each element, on the mask's device.

    count: how many are True. mask: bool of any shape.
    """

    def __init__(self, mask: Tensor) -> None:
        self.count, self._size = int(mask.sum()), mask.numel()
        padded = nn.functional.pad(mask.flatten(), (0, -self._size % 8)).view(-1, 8)
        self._bits = (padded << _shifts(mask.device)).sum(1, dtype=torch.uint8)

    def indices(self) -> Tensor:
        """[count] int64, ascending, into the flattened mask."""
        spread = (self._bits[:, None] >> _shifts(self._bits.device) & 1).flatten()[: self._size]
        return torch.nonzero_static(spread, size=self.count)[:, 0]


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


class RebuiltLinear(nn.Module):
    """y = x Wᵀ + bias with W [N, K] rebuilt for every pass. bias [N], which does not train, or None.

    places: where W has kept weights, or kept groups. resident: keep their indices between passes.
    """

    places: Places
    bias: Tensor | None
    resident: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._dense: Tensor | None = None
        self._indices: Tensor | None = None
        self._made_of: tuple[object, ...] = ()

    @property
    def variables(self) -> tuple[nn.Parameter, ...]:
        """The parameters that train."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype) -> Tensor:
        """W [N, K] in `dtype`, without gradients."""
        raise NotImplementedError

    def gradients(self, of_weight: Tensor) -> tuple[Tensor, ...]:
        """of_weight [N, K]: the gradient of W -> the gradient of each of the variables, float32."""
        raise NotImplementedError

    def indices(self) -> Tensor:
        """The places as indices [n] int32, row by row; kept until `release`, and longer if resident."""
        if self._indices is None:
            self._indices = self.places.indices().int()
        return self._indices

    def passed(self, dtype: torch.dtype) -> Tensor:
        """The dense weight, that of the present pass if the variables are the same."""
        made_of = (dtype, *(version for variable in self.variables for version in (id(variable), variable._version)))
        if self._dense is None or made_of != self._made_of:
            self.release()
            self._dense, self._made_of = self.dense(dtype), made_of
        return self._dense

    def release(self) -> None:
        """Forget what was made for the present pass."""
        self._dense = None
        if not self.resident:
            self._indices = None

    def release_after_backward(self) -> None:
        """From now on, release whenever the gradient of a variable is complete."""
        own = weakref.ref(self)  # variables must not keep their linear alive

        def completed(_: Tensor) -> None:
            if linear := own():
                linear.release()

        for variable in self.variables:
            variable.register_post_accumulate_grad_hook(completed)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = _Product.apply(inputs, self, *self.variables)  # type: ignore[no-untyped-call]
        return out


class _Product(torch.autograd.Function):
    """x Wᵀ + bias, in the dtype of autocast or else of x. Of x alone something is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, linear: RebuiltLinear, *_: Tensor) -> Tensor:
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        taken = inputs.to(dtype)
        ctx.save_for_backward(taken)
        ctx.linear, ctx.dtype = linear, inputs.dtype
        bias = None if linear.bias is None else linear.bias.to(dtype)
        return nn.functional.linear(taken, linear.passed(dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inputs,) = ctx.saved_tensors
        linear: RebuiltLinear = ctx.linear
        gradient = gradient.to(inputs.dtype)
        of_inputs = (gradient @ linear.passed(inputs.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        of_weight = gradient.flatten(0, -2).T @ inputs.flatten(0, -2)
        return of_inputs, None, *linear.gradients(of_weight)
