"""Time calls on a device: GPUs by replays of CUDA graphs, CPUs by the wall."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.backends.base import Prepared
from ..kernels.backends.measure import FEW_TOKENS, WARM_MILLISECONDS, behind_a_writer, replayed, turns
from .case import Times

CPU_SAMPLES = 5
EAGER_CALLS = 20


COPY = "copy_bytes_per_second"
COPIED = 1 << 30
"""Bytes of the copy whose speed is the ceiling of memory."""


class Clock(Protocol):
    """Times calls of one way."""

    def ceilings(self) -> dict[str, float]:
        """What the device can at most: COPY; nothing where that is not measured."""

    def alive(self) -> bool:
        """Whether the device still answers: after some failures a process has lost its GPU."""

    def turns(self, nbytes: int, tokens: int) -> int:
        """How many weights of so many bytes take turns: as many as a model reads between two uses of one."""

    def time(self, call: Callable[[Prepared], object], written: Tensor, weights: Sequence[Prepared]) -> Times:
        """written: what a producer writes before the call, M tokens first."""


class CudaClock:
    """Device time in replayed CUDA graphs. Few tokens: behind a kernel that writes the activations, by weights that
    take turns so that none is in the L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def ceilings(self) -> dict[str, float]:
        with torch.cuda.device(self._device), torch.inference_mode():
            source = torch.empty(COPIED // 4, dtype=torch.int32, device=self._device).random_()
            out = torch.empty_like(source)
            # Added, as a graph executes copies as nodes of another kind, at another speed.
            taken = median(replayed(lambda _: torch.add(source, 1, out=out), [()], WARM_MILLISECONDS))
        return {COPY: 2 * COPIED / taken * 1e6}

    def alive(self) -> bool:
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True

    def turns(self, nbytes: int, tokens: int) -> int:
        return turns(nbytes, self._device) if tokens <= FEW_TOKENS else 1

    def time(self, call: Callable[[Prepared], object], written: Tensor, weights: Sequence[Prepared]) -> Times:
        with torch.cuda.device(self._device):
            if len(weights) > 1 or written.shape[0] <= FEW_TOKENS:
                samples = behind_a_writer(call, written, weights, WARM_MILLISECONDS, {})
            else:
                samples = replayed(call, weights, WARM_MILLISECONDS)
            torch.cuda.synchronize(self._device)
            started = time.perf_counter()
            for number in range(EAGER_CALLS):
                call(weights[number % len(weights)])
            torch.cuda.synchronize(self._device)
        wall = (time.perf_counter() - started) / EAGER_CALLS * 1e6
        return Times(median(samples), min(samples), max(samples), wall)


class CpuClock:
    """Wall time, each call a sample."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def ceilings(self) -> dict[str, float]:
        return {}

    def alive(self) -> bool:
        return True

    def turns(self, nbytes: int, tokens: int) -> int:
        return 1

    def time(self, call: Callable[[Prepared], object], written: Tensor, weights: Sequence[Prepared]) -> Times:
        call(weights[0])
        samples = []
        for _ in range(CPU_SAMPLES):
            started = self._now()
            call(weights[0])
            samples.append((self._now() - started) * 1e6)
        return Times(median(samples), min(samples), max(samples), median(samples))


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()
