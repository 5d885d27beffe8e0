"""Activations that the program has quantized itself, where it can do so as part of what computes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Takes the place of activations [..., K] in calls of a linear.

    codes: [..., K] of the dtype of the weight's codes. scale: [tokens, 1] float32, contiguous. dtype: of the
    activations that they stand for, and of what the linear returns.
    """

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def numel(self) -> int:
        return self.codes.numel()

    def get_device(self) -> int:
        return self.codes.get_device()

    def reshape(self, *shape: int) -> Codes:
        return replace(self, codes=self.codes.reshape(*shape))


Activations = Tensor | Codes
"""What calls of a linear pass; both have the shape, and the dtype of the result."""


def plain(x: Activations, what: object) -> Tensor:
    """x where it is not codes. ValueError if it is: `what` quantizes activations itself, or takes them as they are."""
    if isinstance(x, Codes):
        raise ValueError(f"{what} takes activations, not codes of them")
    return x
