"""Descent on the orthogonal group: Adam in the tangent space, Cayley steps.

At a rotation Q with gradient G, A = QᵀG - GᵀQ is the skew-symmetric direction in which the loss rises. Adam keeps the
moments of A's entries, and Q moves to Q (1 - S/2)⁻¹ (1 + S/2), S = - rate · Adam's step: orthogonal again, whatever the
step. Rotations and moments are float64, since thousands of products would let float32 drift by more than a rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIRST, SECOND, TINY = 0.9, 0.99, 1e-12
"""Adam's decay rates of both moments, and the least root of the second one."""


class OrthogonalAdam:
    """Adam for rotations [n, size, size] float64 that takes `steps` steps, the rate falling to zero as a cosine does.

    rotation: the present rotations. state: everything that a continued descent needs, by name.
    """

    def __init__(self, rotation: Tensor, *, rate: float, steps: int) -> None:
        self.rotation = rotation
        self._rate, self._steps = rate, steps
        self._first, self._second = torch.zeros_like(rotation), torch.zeros_like(rotation)

    @property
    def state(self) -> dict[str, Tensor]:
        return {"rotation": self.rotation, "first": self._first, "second": self._second}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from the `state` of a descent that was interrupted."""
        self.rotation, self._first, self._second = (
            state[name].to(self.rotation.device) for name in ("rotation", "first", "second")
        )

    def step(self, number: int, gradient: Tensor) -> None:
        """Step `number`, from 0 on, for the gradient [n, size, size] of the loss at the present rotations."""
        tangent = self.rotation.mT @ gradient.to(self.rotation.dtype)
        tangent = tangent - tangent.mT
        self._first = torch.lerp(tangent, self._first, FIRST)
        self._second = torch.lerp(tangent.square(), self._second, SECOND)
        mean = self._first / (1 - FIRST ** (number + 1))
        root = (self._second / (1 - SECOND ** (number + 1))).sqrt() + TINY
        rate = self._rate * (1 + math.cos(math.pi * number / self._steps)) / 2
        half = mean / root * (-rate / 2)
        eye = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
        self.rotation = self.rotation @ torch.linalg.solve(eye - half, eye + half)
