"""What training does, how it runs, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Schedule:
    """epochs over the fitted sequences, `batch` sequences per step.

    rate: Adam's learning rate; if `relative`, a share of the root mean square of a linear's remaining weights, which
    makes it independent of their size. It rises during the share `warmup` of the steps, while Adam's variances are
    inaccurate, and falls along a cosine to the share `floor`. patience: epochs without a new best held-out loss after
    which training ends early; 0: never. retries: how often training restarts with LATER_RATE of the rate if the first
    epoch has not lowered the held-out loss. Of the rates whose steps are not too long, the highest trains best, and
    that differs by ten between models.
    """

    epochs: int
    rate: float
    batch: int = 16
    floor: float = 0.05
    warmup: float = 0.1
    relative: bool = True
    patience: int = 0
    retries: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step number `step` of `steps`."""
        rising = self.warmup * steps
        if step < rising:
            return self.rate * (step + 1) / (rising + 1)
        fade = 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        return self.rate * (self.floor + (1 - self.floor) * fade)


@dataclass(frozen=True)
class Curve:
    """Loss on the held-out sequences before training and after each epoch; best: the index of the kept state.

    skipped: the number of steps skipped because the loss was not finite, or, for the parameters concerned, a gradient.
    restarts: how many runs at higher rates came before this one, and lowered nothing.
    """

    losses: tuple[float, ...]
    best: int
    skipped: int = 0
    restarts: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        return cls(**{**values, "losses": tuple(values["losses"])})


@dataclass(frozen=True)
class TrainingOptions:
    """How training runs. The result depends on it only through rounding.

    micro: sequences computed at once, None for the whole batch; with less, the gradients of all parameters are in
    memory until the last part. offload: keep in CPU memory what only one layer at a time needs: the optimizer's
    moments, and end to end the hidden states between layers. dtype: in which models run (precision.py); parameters,
    their gradients and the optimizer are float32. state: file for the state after each epoch (one of this name for each
    retry), from which an interrupted training resumes to the same result. progress: called with the steps done and all
    steps.
    """

    micro: int | None = None
    offload: bool = False
    dtype: torch.dtype = torch.float32
    state: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
