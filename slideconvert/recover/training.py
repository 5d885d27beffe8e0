"""The loop that both recoveries share: Adam with a cosine, and the state that did best on held-out windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..precision import model_precision, running


@dataclass(frozen=True)
class Schedule:
    """epochs over the fitted windows, `batch` windows per step.

    rate: Adam's learning rate as a share of the root mean square of a linear's survivors, so that it means the same
    for models of any size. It rises over the first `warmup` of all steps (Adam's first steps know no variances) and
    falls by a cosine to `floor` of its height.
    """

    epochs: int
    rate: float
    batch: int = 16
    floor: float = 0.05
    warmup: float = 0.1

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step number `step` of `steps`."""
        rising = self.warmup * steps
        if step < rising:
            return self.rate * (step + 1) / (rising + 1)
        fade = 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
        return self.rate * (self.floor + (1 - self.floor) * fade)


@dataclass(frozen=True)
class Curve:
    """Loss on the held-out windows before training and after each epoch; best: which of them was kept (0: before).

    skipped: steps whose loss or gradient was not finite and that were left out.
    """

    losses: tuple[float, ...]
    best: int
    skipped: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        return cls(**{**values, "losses": tuple(values["losses"])})


def train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    *,
    micro: int | None = None,
    offload: bool = False,
    dtype: torch.dtype = torch.float32,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Curve:
    """Adam on `parameters`, leaving them in the state that did best on the held-out windows, the start included.

    loss(windows): mean loss of windows with these numbers [n] int64. fitted, held: numbers of windows. micro: windows
    that are computed at once, the whole batch if None. offload: keep
    the optimizer's state and master weights in CPU memory. dtype: in which models run (precision.py); parameters,
    their gradients and the optimizer are float32.
    """
    device = parameters[0].device
    masters = [parameter.detach().cpu().clone() for parameter in parameters] if offload else list(parameters)
    with torch.no_grad():
        heights = [
            float(parameter.square().sum() / parameter.count_nonzero().clamp(min=1)) ** 0.5 for parameter in parameters
        ]
    optimizer = torch.optim.Adam([{"params": [master]} for master in masters], lr=schedule.rate)
    shuffler = torch.Generator().manual_seed(0)
    steps = schedule.epochs * math.ceil(len(fitted) / schedule.batch)
    best = [parameter.detach().clone() for parameter in parameters]

    def running_loss(windows: Tensor) -> Tensor:
        with running(device, dtype):
            return loss(windows)

    losses, done, skipped = [_mean(running_loss, held, micro or schedule.batch)], 0, 0
    for _ in range(schedule.epochs):
        for windows in fitted[torch.randperm(len(fitted), generator=shuffler)].split(schedule.batch):
            rate = schedule.rate_at(done, steps)
            for group, height in zip(optimizer.param_groups, heights, strict=True):
                group["lr"] = rate * height
            total = 0.0
            for part in windows.split(micro or len(windows)):
                value = running_loss(part) * (len(part) / len(windows))
                with model_precision():
                    value.backward()
                total += float(value.detach())
            slopes = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if math.isfinite(total) and all(bool(slope.isfinite().all()) for slope in slopes):
                _step(optimizer, parameters, masters)
            else:
                skipped += 1
            for parameter in parameters:
                parameter.grad = None
            done += 1
            tell(done, steps)
        losses.append(_mean(running_loss, held, micro or schedule.batch))
        if losses[-1] <= min(losses):
            best = [parameter.detach().clone() for parameter in parameters]
    for parameter, state in zip(parameters, best, strict=True):
        parameter.data.copy_(state)
    return Curve(tuple(losses), min(range(len(losses)), key=lambda epoch: (losses[epoch], -epoch)), skipped)


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter and parameter.grad is not None:
            master.grad = parameter.grad.cpu()
    optimizer.step()
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter:
            parameter.data.copy_(master)


@torch.no_grad()
def _mean(loss: Callable[[Tensor], Tensor], windows: Tensor, batch: int) -> float:
    """The mean loss over windows; infinite if it is not a number, so that such a state is never the best."""
    total = sum(float(loss(part)) * len(part) for part in windows.split(batch))
    return total / len(windows) if math.isfinite(total) else math.inf
