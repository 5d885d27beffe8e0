"""The training loop of both recoveries: AdamW, a cosine schedule, and the best state on held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .options import Curve, Schedule, TrainingOptions
from .run import Run

LATER_RATE = 0.5
"""Learning rate of a retry relative to that of the run before it."""


def train(
    trained: Sequence[tuple[nn.Parameter, float]],
    loss: Callable[..., Tensor],
    fitted: Tensor,
    held: Tensor,
    schedule: Schedule,
    options: TrainingOptions | None = None,
    read: Callable[[Tensor], tuple[Tensor, ...]] = lambda numbers: (numbers,),
) -> Curve:
    """Train with AdamW without decay, and leave the parameters in the best state on the held-out sequences, which can
    be the initial one. trained: parameters, each with the rms that scales its rate. The curve is that of the last run.

    loss(*read(numbers)): mean loss of sequences of this rank with these numbers [n] int64. read: what the loss is
    computed from, [n, ...] each, on the device of the parameters; without it, the numbers. fitted, held: numbers of the
    sequences of all ranks, at least one of `fitted` for each rank.
    SlideConvertError if MOST_SKIPPED (run.py) steps in a row are not finite.
    """
    options, skipped = options or TrainingOptions(), 0
    for retry in range(schedule.retries + 1):
        own = replace(schedule, rate=schedule.rate * LATER_RATE**retry, retries=schedule.retries - retry)
        state = options.state and options.state.with_name(f"{options.state.stem}-{retry}{options.state.suffix}")
        # No name for it here: a retry's run would exist beside it.
        curve = _train_once(
            Run(trained, loss, read, fitted, own, replace(options, state=state)), fitted, held, own, options.progress
        )
        skipped += curve.skipped
        if curve.best:
            break
    return replace(curve, skipped=skipped, restarts=retry)


def _train_once(
    run: Run, fitted: Tensor, held: Tensor, schedule: Schedule, progress: Callable[[int, int], None]
) -> Curve:
    """A run over all epochs, like `train` without retries."""
    shuffler = torch.Generator().manual_seed(0)
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
            if schedule.retries and epoch and _best(run.losses) == 0:
                break  # its steps are too long for this model
            for numbers in fitted[order].split(schedule.batch):
                run.step(numbers, schedule.rate_at(done, steps))
                done += 1
                run.check(done, steps)
                progress(done, steps)
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


def _best(losses: Sequence[float]) -> int:
    """The epoch with the least loss, of equal ones the latest."""
    return min(range(len(losses)), key=lambda epoch: (losses[epoch], -epoch))
