"""The steps of one training run: the loss, its gradients, the update of each parameter, and the best state.

A gradient is applied and freed as soon as the backward pass of a batch has completed it, so that memory never holds
those of all parameters (LOMO's fused update, arXiv 2306.09782, section 3.2). The best state is kept in CPU memory.

Of each batch, a rank computes the sequences that it has. The gradients are summed over all ranks in the backward pass
of each rank's last part, in the order in which that completes them, which is the same on all ranks: so one without a
sequence in the batch computes another one with weight zero.

Nothing in a step waits for the device: whether the loss and the gradients are finite is counted there, and read every
few steps. So a GPU can run the steps of a small model as a CUDA graph (core/captured.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .. import ranks
from ..core.captured import LARGEST_INPUTS, Captured
from ..core.precision import model_precision, running
from ..errors import SlideConvertError
from .adam import Adam
from .options import Schedule, TrainingOptions
from .state import load_state, save_state

MOST_SKIPPED = 8
"""Consecutive steps without a finite loss after which training fails, since it would not recover. A GPU is asked as
often, so that it need not be waited for after each step."""


class Run:
    """One run: parameters with their optimizers, the best state so far, and the losses. Arguments as of `train`.

    losses: on the held-out sequences, before training and after each epoch.
    """

    def __init__(
        self,
        trained: Sequence[tuple[nn.Parameter, float]],
        loss: Callable[..., Tensor],
        read: Callable[[Tensor], tuple[Tensor, ...]],
        fitted: Tensor,
        schedule: Schedule,
        options: TrainingOptions,
    ) -> None:
        self.parameters = [parameter for parameter, _ in trained]
        self.best = [torch.empty_like(parameter, device="cpu", requires_grad=False) for parameter in self.parameters]
        self.losses: list[float] = []
        self._loss, self._read, self._batch, self._options = loss, read, schedule.batch, options
        self._device = self.parameters[0].device
        self._optimizers = [Adam(parameter, offload=options.offload) for parameter in self.parameters]
        self._units = torch.tensor([rms if schedule.relative else 1.0 for _, rms in trained], device=self._device)
        self._rates = torch.zeros_like(self._units)
        self._counts = _Counts(self._device)
        # Of the present step: whether its loss is not finite, and whether that or a gradient is not, 1.0 or 0.0.
        self._lost, self._broken = torch.zeros(2, device=self._device).unbind()
        self._complete = False
        self._idle = ranks.share(fitted)[0][:1]
        self._whole = Captured(self._one_step, self.parameters) if self._at_once() else None

    @property
    def skipped(self) -> int:
        """Steps so far whose loss was not finite or, for the parameters concerned, whose gradient was not."""
        return self._counts.read()[0]

    @contextmanager
    def applying(self) -> Iterator[None]:
        """Within the block, the last backward pass of a batch applies and frees each gradient that it completes."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._apply, optimizer, rate))
            for parameter, optimizer, rate in zip(self.parameters, self._optimizers, self._rates, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._whole = None  # it refers to this run, and its graph keeps the memory of a step

    def begin(self, held: Tensor) -> None:
        """Measure the initial loss, or restore the state of an interrupted run."""
        state = self._options.state
        if state and ranks.agreed(state.is_file()):
            self.losses, skipped, in_a_row = load_state(state, self.parameters, self.best, self._optimizers)
            self._counts.restore(skipped, in_a_row)
            return
        self.losses = [self._mean(held)]
        self._keep_best()

    def step(self, numbers: Tensor, rate: float) -> None:
        """One step on these sequences. It is skipped if the loss is not finite, and for the parameters whose gradient
        is not finite."""
        torch.mul(self._units, rate, out=self._rates)
        own, weight = ranks.share(numbers)
        own = own if len(own) else self._idle
        if self._whole:
            self._whole(*self._read(own))
        else:
            parts = own.split(self._options.micro or len(own))
            self._pass(map(self._read, parts), len(own), weight)

    def check(self, done: int, steps: int) -> None:
        """SlideConvertError if MOST_SKIPPED steps in a row were not finite, at the latest MOST_SKIPPED steps later."""
        if self._device.type == "cuda" and done % MOST_SKIPPED and done < steps:
            return
        skipped, _, most = self._counts.read()
        if most >= MOST_SKIPPED:
            raise SlideConvertError(
                f"training: the loss or its gradient was not finite in {most} steps in a row, {skipped} in all "
                f"(step {done} of {steps})",
                hint="leave training out with --block-epochs 0 --end-epochs 0, or run with --precision float32",
            )

    def end_epoch(self, held: Tensor) -> None:
        """Measure the loss, update the best state, and save the state if the options name a file."""
        self.losses.append(self._mean(held))
        better = self.losses[-1] <= min(self.losses)
        if better:
            self._keep_best()
        if self._options.state and ranks.first():
            skipped, in_a_row, _ = self._counts.read()
            best = None if better else self.best
            save_state(self._options.state, self.losses, (skipped, in_a_row), self.parameters, best, self._optimizers)

    def _at_once(self) -> bool:
        """Whether a whole batch may be read at once, and a step be captured: on one GPU, which nothing but this process
        keeps waiting."""
        if self._device.type != "cuda" or ranks.count() > 1 or self._options.offload:
            return False
        return sum(given.nbytes for given in self._read(self._idle)) * self._batch <= LARGEST_INPUTS

    def _one_step(self, *given: Tensor) -> None:
        """A step on a batch that is read."""
        count = len(given[0])
        parts = zip(*(tensor.split(self._options.micro or count) for tensor in given), strict=True)
        self._pass(parts, count, 1.0)

    def _pass(self, parts: Iterable[tuple[Tensor, ...]], sequences: int, weight: float) -> None:
        """Both passes of a batch of so many sequences of this rank, by parts, and the update. weight: of this rank."""
        left, total = sequences, torch.zeros((), device=self._device)
        try:
            for given in parts:
                value = self._run(given) * (weight * len(given[0]) / sequences)
                total += value.detach()
                left -= len(given[0])
                self._complete = not left
                if self._complete:
                    self._lost.copy_(~_of_all(total).isfinite())
                    self._broken.copy_(self._lost)
                with model_precision():
                    value.backward()
            self._counts.add(self._broken)
        finally:
            for parameter in self.parameters:
                parameter.grad = None

    def _apply(self, optimizer: Adam, rate: Tensor, parameter: Tensor) -> None:
        if not self._complete:
            return  # other parts of the batch follow
        assert parameter.grad is not None
        ranks.total(parameter.grad)
        torch.maximum(self._broken, optimizer.step(rate, self._lost), out=self._broken)
        parameter.grad = None

    def _run(self, given: tuple[Tensor, ...]) -> Tensor:
        with running(self._device, self._options.dtype):
            return self._loss(*given)

    @torch.no_grad()
    def _mean(self, numbers: Tensor) -> float:
        """The mean loss over sequences; infinite if it is not finite, so that such a state is never the best."""
        own, _ = ranks.share(numbers)
        parts = own.split(self._options.micro or self._batch) if len(own) else ()
        (total,) = ranks.sums(sum(float(self._run(self._read(part))) * len(part) for part in parts))
        return total / len(numbers) if math.isfinite(total) else math.inf

    def _keep_best(self) -> None:
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best.copy_(parameter.detach())


class _Counts:
    """Counts steps that were not finite, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._found = torch.zeros(3, dtype=torch.int64, device=device)

    def add(self, broken: Tensor) -> None:
        """A step. broken: 1.0 or 0.0, a scalar: whether it was not finite."""
        skipped, in_a_row, most = self._found.unbind()
        whole = broken.long()
        skipped += whole
        in_a_row.add_(1).mul_(whole)
        torch.maximum(most, in_a_row, out=most)

    def read(self) -> tuple[int, int, int]:
        """Steps that were not finite: in all, since the last one that was, and most in a row. Waits for the device."""
        skipped, in_a_row, most = self._found.tolist()
        return skipped, in_a_row, most

    def restore(self, skipped: int, in_a_row: int) -> None:
        """Go on from such numbers."""
        self._found.copy_(torch.tensor([skipped, in_a_row, in_a_row]))


def _of_all(total: Tensor) -> Tensor:
    """The sum of a scalar over all ranks."""
    return total if ranks.count() == 1 else total.new_tensor(ranks.sums(float(total))[0])
