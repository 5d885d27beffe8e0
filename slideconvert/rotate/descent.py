"""Descent on the orthogonal group: Adam in the tangent space, Cayley steps.

At a rotation Q with gradient G, A = QᵀG - GᵀQ is the skew-symmetric direction in which the loss rises. Adam keeps the
moments of A's entries, and Q moves to Q (1 - S/2)⁻¹ (1 + S/2), S = - rate · Adam's step: orthogonal again, whatever the
step. Rotations and moments are float64, since thousands of products would let float32 drift by more than a rounding.

Rotations of one size descend together, however many, and a step does not wait for the device. 1 - S/2 is never
singular, as S has imaginary eigenvalues: whether it could be factored need not be asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, SECOND, TINY = 0.9, 0.99, 1e-12
"""Adam's decay rates of both moments, and the least root of the second one."""


class OrthogonalAdam:
    """Adam for rotations [n, size, size] float64 that takes `steps` steps, the rate falling to zero as a cosine does.

    rotation: the present rotations, a tensor of its own that each step changes. state: everything that a continued
    descent needs, by name.
    """

    def __init__(self, rotation: Tensor, *, rate: float, steps: int) -> None:
        self.rotation = rotation.clone()
        self._first, self._second = torch.zeros_like(rotation), torch.zeros_like(rotation)
        self._factors = _factors(rate, steps).to(rotation.device)

    @property
    def state(self) -> dict[str, Tensor]:
        return {"rotation": self.rotation, "first": self._first, "second": self._second}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from the `state` of a descent that was interrupted."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def step(self, number: int, gradient: Tensor) -> None:
        """Step `number`, from 0 on, for the gradient [n, size, size] of the loss at the present rotations."""
        first, second = self._factors[number]
        tangent = self.rotation.mT @ gradient.to(self.rotation.dtype)
        tangent = tangent - tangent.mT
        self._first.lerp_(tangent, 1 - FIRST)
        self._second.lerp_(tangent.square_(), 1 - SECOND)
        half = self._first * first / ((self._second * second).sqrt_() + TINY)
        eye = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
        turn, _ = torch.linalg.solve_ex(eye - half, eye + half, check_errors=False)
        self.rotation.copy_(self.rotation @ turn)


def _factors(rate: float, steps: int) -> Tensor:
    """Of each step, [steps, 2] float64: what the first moment is multiplied with, for S/2 and without the bias towards
    its start at zero, and what the second one is, without that bias."""
    number = torch.arange(steps, dtype=torch.float64)
    rates = rate * (1 + torch.cos(torch.pi * number / steps)) / 2
    return torch.stack([-rates / 2 / (1 - FIRST ** (number + 1)), 1 / (1 - SECOND ** (number + 1))], 1)
