"""The training loop of both recoveries: AdamW, a cosine schedule, and the best state on held-out sequences.

A gradient is applied and freed as soon as the backward pass of a batch has completed it, so that memory never holds
those of all parameters (LOMO's fused update, arXiv 2306.09782, section 3.2). The best state is kept in CPU memory.

Of each batch, a rank computes the sequences that it has. The gradients are summed over all ranks in the backward pass
of each rank's last part, in the order in which that completes them, which is the same on all ranks: so one without a
sequence in the batch computes another one with weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..core.precision import model_precision, running
from ..errors import SlideConvertError
from .adam import Adam
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

    skipped: the number of steps skipped because the loss was not finite, or, for the parameters concerned, a gradient.
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

    loss(numbers): mean loss of sequences of this rank with these numbers [n] int64. fitted, held: numbers of the
    sequences of all ranks, at least one of `fitted` for each rank.
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
    run, shuffler = _Run(trained, loss, fitted, schedule, options), torch.Generator().manual_seed(0)
    steps = schedule.epochs * math.ceil(len(fitted) / schedule.batch)
    run.begin(held)
    done = (len(run.losses) - 1) * (steps // max(1, schedule.epochs))
    with run.applying():
        for epoch in range(schedule.epochs):
            order = shuffled(len(fitted), schedule.batch, shuffler)
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
    with torch.no_grad():
        for parameter, best in zip(run.parameters, run.best, strict=True):
            parameter.copy_(best)
    return Curve(tuple(run.losses), _best(run.losses), run.skipped)


def shuffled(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """The numbers below `count` in random order, [count] int64: of each batch every number modulo `batch` once.

    Ranks have the sequences of equal numbers modulo their count, so where that divides `batch` all have as many of each
    batch, and none waits for another. The order does not depend on the ranks.
    """
    drawn = torch.randperm(count, generator=generator)
    kind = drawn % batch
    place = (kind[:, None] == torch.arange(batch)).cumsum(0).gather(1, kind[:, None])[:, 0]
    return drawn[(place * batch + kind).argsort()]


class _Run:
    """One run: parameters with their optimizers, the best state so far, and the losses.

    losses: on the held-out sequences, before training and after each epoch. skipped, in_a_row: skipped steps, in all
    and since the last successful one.
    """

    def __init__(
        self,
        trained: Sequence[tuple[nn.Parameter, float]],
        loss: Callable[[Tensor], Tensor],
        fitted: Tensor,
        schedule: Schedule,
        options: TrainingOptions,
    ) -> None:
        self.parameters = [parameter for parameter, _ in trained]
        self.best = [torch.empty_like(parameter, device="cpu", requires_grad=False) for parameter in self.parameters]
        self.losses: list[float] = []
        self.skipped = self.in_a_row = 0
        self._loss, self._batch, self._options = loss, schedule.batch, options
        self._optimizers = [
            Adam(parameter, rms if schedule.relative else 1.0, offload=options.offload) for parameter, rms in trained
        ]
        self._rate, self._complete, self._finite = 0.0, False, True
        self._idle = ranks.share(fitted)[0][:1]

    @contextmanager
    def applying(self) -> Iterator[None]:
        """Within the block, the last backward pass of a batch applies and frees each gradient that it completes."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._apply, optimizer))
            for parameter, optimizer in zip(self.parameters, self._optimizers, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, held: Tensor) -> None:
        """Measure the initial loss, or restore the state of an interrupted run."""
        state = self._options.state
        if state and ranks.agreed(state.is_file()):
            found = load_state(state, self.parameters, self.best, self._optimizers)
            self.losses, self.skipped, self.in_a_row = found
            return
        self.losses = [_mean(self._run, held, self._options.micro or self._batch)]
        self._keep_best()

    def step(self, numbers: Tensor, rate: float) -> None:
        """One step on these sequences. It is skipped if the loss is not finite, and for the parameters whose gradient
        is not finite."""
        own, weight = ranks.share(numbers)
        own = own if len(own) else self._idle
        self._rate, self._finite, total = rate, True, 0.0
        parts = own.split(self._options.micro or len(own))
        for number, part in enumerate(parts):
            value = self._run(part) * (weight * len(part) / len(own))
            total += float(value.detach())
            self._complete = number == len(parts) - 1
            if self._complete:
                (total,) = ranks.sums(total)
                if not math.isfinite(total):
                    self._finite = False
                    break
            with model_precision():
                value.backward()
        if self._finite:
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        for parameter in self.parameters:
            parameter.grad = None

    def end_epoch(self, held: Tensor) -> None:
        """Measure the loss, update the best state, and save the state if the options name a file."""
        self.losses.append(_mean(self._run, held, self._options.micro or self._batch))
        better = self.losses[-1] <= min(self.losses)
        if better:
            self._keep_best()
        if self._options.state and ranks.first():
            skipped, best = (self.skipped, self.in_a_row), None if better else self.best
            save_state(self._options.state, self.losses, skipped, self.parameters, best, self._optimizers)

    def _apply(self, optimizer: Adam, parameter: Tensor) -> None:
        if not self._complete:
            return  # other parts of the batch follow
        assert parameter.grad is not None
        ranks.total(parameter.grad)
        if bool(parameter.grad.isfinite().all()):
            optimizer.step(self._rate)
        else:
            self._finite = False
        parameter.grad = None

    def _run(self, numbers: Tensor) -> Tensor:
        with running(self.parameters[0].device, self._options.dtype):
            return self._loss(numbers)

    def _keep_best(self) -> None:
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best.copy_(parameter.detach())


def _best(losses: Sequence[float]) -> int:
    """The epoch with the least loss, of equal ones the latest."""
    return min(range(len(losses)), key=lambda epoch: (losses[epoch], -epoch))


@torch.no_grad()
def _mean(loss: Callable[[Tensor], Tensor], numbers: Tensor, batch: int) -> float:
    """The mean loss over sequences; infinite if it is not finite, so that such a state is never the best."""
    own, _ = ranks.share(numbers)
    (total,) = ranks.sums(sum(float(loss(part)) * len(part) for part in (own.split(batch) if len(own) else ())))
    return total / len(numbers) if math.isfinite(total) else math.inf
