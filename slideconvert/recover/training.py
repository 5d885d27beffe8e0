"""The loop that both recoveries share: Adam with a cosine, and the state that did best on held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.precision import model_precision, running
from ..errors import SlideConvertError
from .state import load_state, save_state

MOST_SKIPPED = 8
"""Steps in a row whose loss is not finite, after which training is given up: it would not come back."""
LATER_RATE = 0.25
"""Rate of each retry as a share of the one before it."""


@dataclass(frozen=True)
class Schedule:
    """epochs over the fitted sequences, `batch` sequences per step.

    rate: Adam's learning rate; if `relative`, as a share of the root mean square of a linear's survivors, so that it
    means the same for models of any size. It rises over the first `warmup` of all steps (Adam's first steps know no
    variances) and falls by a cosine to `floor` of its height. patience: epochs without a new best held-out loss after
    which training ends early; 0: never. retries: how often training that did not help begins again from the start, each
    time with LATER_RATE of the rate: what is nearly as good as it can be needs small steps.
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
    """Loss on the held-out sequences before training and after each epoch; best: which of them was kept (0: before).

    skipped: steps whose loss or gradient was not finite and that were left out.
    """

    losses: tuple[float, ...]
    best: int
    skipped: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        return cls(**{**values, "losses": tuple(values["losses"])})


@dataclass(frozen=True)
class TrainingOptions:
    """How training runs, none of which changes its result but by rounding.

    micro: sequences that are computed at once, the whole batch if None. offload: keep the optimizer's state and master
    weights in CPU memory. dtype: in which models run (precision.py); parameters, their gradients and the optimizer are
    float32. state: file for the state after each epoch (one of this name for each retry), from which an interrupted
    training goes on to the same result. progress: called with the steps done and all steps.
    """

    micro: int | None = None
    offload: bool = False
    dtype: torch.dtype = torch.float32
    state: Path | None = None
    progress: Callable[[int, int], None] = lambda done, total: None


def train(
    trained: Sequence[tuple[nn.Parameter, float]],
    loss: Callable[[Tensor], Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    options: TrainingOptions | None = None,
) -> Curve:
    """AdamW without decay on parameters, each with the rms by which its rate is measured, leaving them in the state
    that did best on the held-out sequences, the start included. The curve is that of the last try.

    loss(numbers): mean loss of sequences with these numbers [n] int64. fitted, held: numbers of sequences.
    SlideConvertError if MOST_SKIPPED steps in a row are not finite.
    """
    options, skipped = options or TrainingOptions(), 0
    for retry in range(schedule.retries + 1):
        own = replace(schedule, rate=schedule.rate * LATER_RATE**retry)
        state = options.state and options.state.with_name(f"{options.state.stem}-{retry}{options.state.suffix}")
        curve = _train_once(trained, loss, fitted, held, own, replace(options, state=state))
        skipped += curve.skipped
        if curve.best:
            break
    return replace(curve, skipped=skipped)


def _train_once(
    trained: Sequence[tuple[nn.Parameter, float]],
    loss: Callable[[Tensor], Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    options: TrainingOptions,
) -> Curve:
    """Once through all epochs; as `train`."""
    micro, offload, state = options.micro, options.offload, options.state
    parameters = [parameter for parameter, _ in trained]
    units = [rms if schedule.relative else 1.0 for _, rms in trained]
    device = parameters[0].device
    masters = [parameter.detach().cpu().clone() for parameter in parameters] if offload else list(parameters)
    optimizer = torch.optim.AdamW([{"params": [master]} for master in masters], lr=schedule.rate, weight_decay=0.0)
    shuffler = torch.Generator().manual_seed(0)
    steps = schedule.epochs * math.ceil(len(fitted) / schedule.batch)

    def running_loss(windows: Tensor) -> Tensor:
        with running(device, options.dtype):
            return loss(windows)

    best = [parameter.detach().clone() for parameter in parameters]
    losses, skipped, in_a_row = [_mean(running_loss, held, micro or schedule.batch)], 0, 0
    if state and state.is_file():
        losses, skipped, in_a_row = load_state(state, masters, best, optimizer)
        _put(parameters, masters)
    done = (len(losses) - 1) * (steps // max(1, schedule.epochs))
    for epoch in range(schedule.epochs):
        order = torch.randperm(len(fitted), generator=shuffler)
        if epoch < len(losses) - 1:
            continue  # an earlier run has done it; the shuffler has advanced
        if schedule.patience and epoch - _best(losses) >= schedule.patience:
            break
        for windows in fitted[order].split(schedule.batch):
            rate = schedule.rate_at(done, steps)
            for group, unit in zip(optimizer.param_groups, units, strict=True):
                group["lr"] = rate * unit
            total = 0.0
            for part in windows.split(micro or len(windows)):
                value = running_loss(part) * (len(part) / len(windows))
                with model_precision():
                    value.backward()
                total += float(value.detach())
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if math.isfinite(total) and all(bool(gradient.isfinite().all()) for gradient in gradients):
                _step(optimizer, parameters, masters)
                in_a_row = 0
            else:
                skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row >= MOST_SKIPPED:
                raise SlideConvertError(
                    f"training: the loss or its gradient was not finite in {in_a_row} steps in a row, {skipped} in all "
                    f"(step {done + 1} of {steps})",
                    hint="leave training out with --block-epochs 0 --end-epochs 0, or run with --precision float32",
                )
            for parameter in parameters:
                parameter.grad = None
            done += 1
            options.progress(done, steps)
        losses.append(_mean(running_loss, held, micro or schedule.batch))
        if losses[-1] <= min(losses):
            best = [parameter.detach().clone() for parameter in parameters]
        if state:
            save_state(state, losses, (skipped, in_a_row), masters, best, optimizer)
    for parameter, found in zip(parameters, best, strict=True):
        parameter.data.copy_(found)
    return Curve(tuple(losses), _best(losses), skipped)


def _best(losses: Sequence[float]) -> int:
    """The epoch of the least loss, the latest of equals."""
    return min(range(len(losses)), key=lambda epoch: (losses[epoch], -epoch))


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter and parameter.grad is not None:
            master.grad = parameter.grad.cpu()
    optimizer.step()
    _put(parameters, masters)


def _put(parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    """What the optimizer has into what the model has, where those are two."""
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter:
            parameter.data.copy_(master)


@torch.no_grad()
def _mean(loss: Callable[[Tensor], Tensor], windows: Tensor, batch: int) -> float:
    """The mean loss over windows; infinite if it is not a number, so that such a state is never the best."""
    total = sum(float(loss(part)) * len(part) for part in windows.split(batch))
    return total / len(windows) if math.isfinite(total) else math.inf
