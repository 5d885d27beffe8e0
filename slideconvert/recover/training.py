"""The training loop of both recoveries: AdamW, a cosine schedule, and the best state on held-out sequences."""

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
"""Consecutive steps without a finite loss after which training fails, since it would not recover."""
LATER_RATE = 0.25
"""Learning rate of a retry relative to that of the run before it."""


@dataclass(frozen=True)
class Schedule:
    """epochs over the fitted sequences, `batch` sequences per step.

    rate: Adam's learning rate; if `relative`, a share of the root mean square of a linear's remaining weights, which
    makes it independent of the model. It rises during the share `warmup` of the steps, while Adam's variances are
    inaccurate, and falls along a cosine to the share `floor`. patience: epochs without a new best held-out loss after
    which training ends early; 0: never. retries: how often training without any improvement restarts, each time with
    LATER_RATE of the rate, since a nearly optimal model needs small steps.
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

    skipped: the number of steps skipped because the loss or gradient was not finite.
    """

    losses: tuple[float, ...]
    best: int
    skipped: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        return cls(**{**values, "losses": tuple(values["losses"])})


@dataclass(frozen=True)
class TrainingOptions:
    """How training runs. The result depends on it only through rounding.

    micro: sequences computed at once, None for the whole batch. offload: keep the optimizer's state and master
    weights in CPU memory. dtype: in which models run (precision.py); parameters, their gradients and the optimizer are
    float32. state: file for the state after each epoch (one of this name for each retry), from which an interrupted
    training resumes to the same result. progress: called with the steps done and all steps.
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
    """Train with AdamW without decay, and leave the parameters in the best state on the held-out sequences, which can
    be the initial one. trained: parameters, each with the rms that scales its rate. The curve is that of the last run.

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
    """One run over all epochs, like `train` without retries."""
    run, shuffler = _Run(trained, loss, schedule, options), torch.Generator().manual_seed(0)
    steps = schedule.epochs * math.ceil(len(fitted) / schedule.batch)
    run.begin(held)
    done = (len(run.losses) - 1) * (steps // max(1, schedule.epochs))
    for epoch in range(schedule.epochs):
        order = torch.randperm(len(fitted), generator=shuffler)
        if epoch < len(run.losses) - 1:
            continue  # done before the interruption; the shuffler has advanced
        if schedule.patience and epoch - _best(run.losses) >= schedule.patience:
            break
        for numbers in fitted[order].split(schedule.batch):
            run.step(numbers, schedule.rate_at(done, steps))
            if run.in_a_row >= MOST_SKIPPED:
                raise SlideConvertError(
                    f"training: the loss or its gradient was not finite in {run.in_a_row} steps in a row, "
                    f"{run.skipped} in all (step {done + 1} of {steps})",
                    hint="leave training out with --block-epochs 0 --end-epochs 0, or run with --precision float32",
                )
            done += 1
            options.progress(done, steps)
        run.end_epoch(held)
    for parameter, best in zip(run.parameters, run.best, strict=True):
        parameter.data.copy_(best)
    return Curve(tuple(run.losses), _best(run.losses), run.skipped)


class _Run:
    """One run: parameters with the optimizer's master copies, the best state so far, and the losses.

    losses: on the held-out sequences, before training and after each epoch. skipped, in_a_row: skipped steps, in all
    and since the last successful one.
    """

    def __init__(
        self,
        trained: Sequence[tuple[nn.Parameter, float]],
        loss: Callable[[Tensor], Tensor],
        schedule: Schedule,
        options: TrainingOptions,
    ) -> None:
        self.parameters = [parameter for parameter, _ in trained]
        self.best = self._copies()
        self.losses: list[float] = []
        self.skipped = self.in_a_row = 0
        self._loss, self._batch, self._options = loss, schedule.batch, options
        self._units = [rms if schedule.relative else 1.0 for _, rms in trained]
        self._masters: list[Tensor] = list(self.parameters)
        if options.offload:
            self._masters = [parameter.detach().cpu().clone() for parameter in self.parameters]
        groups = [{"params": [master]} for master in self._masters]
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.rate, weight_decay=0.0)

    def begin(self, held: Tensor) -> None:
        """Measure the initial loss, or restore the state of an interrupted run."""
        self.losses = [_mean(self._run, held, self._options.micro or self._batch)]
        state = self._options.state
        if state and state.is_file():
            self.losses, self.skipped, self.in_a_row = load_state(state, self._masters, self.best, self._optimizer)
            _put(self.parameters, self._masters)

    def step(self, numbers: Tensor, rate: float) -> None:
        """One step on these sequences, skipped if the loss or a gradient is not finite."""
        for group, unit in zip(self._optimizer.param_groups, self._units, strict=True):
            group["lr"] = rate * unit
        total = 0.0
        for part in numbers.split(self._options.micro or len(numbers)):
            value = self._run(part) * (len(part) / len(numbers))
            with model_precision():
                value.backward()
            total += float(value.detach())
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if math.isfinite(total) and all(bool(gradient.isfinite().all()) for gradient in gradients):
            _step(self._optimizer, self.parameters, self._masters)
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        for parameter in self.parameters:
            parameter.grad = None

    def end_epoch(self, held: Tensor) -> None:
        """Measure the loss, update the best state, and save the state if the options name a file."""
        self.losses.append(_mean(self._run, held, self._options.micro or self._batch))
        if self.losses[-1] <= min(self.losses):
            self.best = self._copies()
        if self._options.state:
            skipped = self.skipped, self.in_a_row
            save_state(self._options.state, self.losses, skipped, self._masters, self.best, self._optimizer)

    def _run(self, numbers: Tensor) -> Tensor:
        with running(self.parameters[0].device, self._options.dtype):
            return self._loss(numbers)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def _best(losses: Sequence[float]) -> int:
    """The epoch with the least loss, of equal ones the latest."""
    return min(range(len(losses)), key=lambda epoch: (losses[epoch], -epoch))


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter and parameter.grad is not None:
            master.grad = parameter.grad.cpu()
    optimizer.step()
    _put(parameters, masters)


def _put(parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    """Copy offloaded master weights to the parameters."""
    for parameter, master in zip(parameters, masters, strict=True):
        if master is not parameter:
            parameter.data.copy_(master)


@torch.no_grad()
def _mean(loss: Callable[[Tensor], Tensor], numbers: Tensor, batch: int) -> float:
    """The mean loss over sequences; infinite if it is not finite, so that such a state is never the best."""
    total = sum(float(loss(part)) * len(part) for part in numbers.split(batch))
    return total / len(numbers) if math.isfinite(total) else math.inf
