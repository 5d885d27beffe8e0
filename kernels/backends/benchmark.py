"""The backend benchmark: which of two is faster for a linear on this device, at several numbers of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from ..spec import LinearSpec
from .base import Backend, Prepared

TOKENS = (16, 128, 1024, 8192)
"""The numbers of tokens to measure: decoding, and prompts."""
LEAST_MILLISECONDS = 1.0
"""The least work in one timed replay."""
REPLAYS = 5


@dataclass(frozen=True)
class Comparison:
    """Microseconds of a whole call (quantize, product, scales) by number of tokens, of the first and second backend."""

    first: dict[int, float]
    second: dict[int, float]

    def speedup(self, tokens: int) -> float:
        """The first over the second, at the measured number of tokens that is nearest in proportion."""
        nearest = min(self.first, key=lambda measured: abs(math.log(max(1, tokens) / measured)))
        return self.second[nearest] / self.first[nearest]

    @property
    def overall(self) -> float:
        """The geometric mean of the speed-ups: decoding and prompts have equal weight."""
        return math.exp(sum(math.log(self.speedup(tokens)) for tokens in self.first) / len(self.first))

    def __str__(self) -> str:
        return ", ".join(f"{self.speedup(tokens):.2f}x at {tokens}" for tokens in self.first)


@cache
def compare(first: Backend, second: Backend) -> Comparison:
    """Measure two backends of one spec, once per process. Random weights that follow the pattern, bfloat16
    activations."""
    with torch.cuda.device(first.device):
        return _compare(first, second)


def _compare(first: Backend, second: Backend) -> Comparison:
    spec, device = first.spec, first.device
    weight = spec.random(device)
    times: list[dict[int, float]] = []
    for backend in (first, second):
        prepared = backend.prepare(weight)
        times.append({})
        for tokens in TOKENS:
            if _bytes(spec, tokens) > torch.cuda.mem_get_info(device)[0] // 2:
                break
            x = torch.randn(tokens, spec.columns, dtype=torch.bfloat16, device=device)
            times[-1][tokens] = _microseconds(backend, x, prepared)
        del prepared
    return Comparison(*times)


def _bytes(spec: LinearSpec, tokens: int) -> int:
    """Roughly the bytes of a call: activations, their codes (up to twice as many when lifted), sums, output."""
    return tokens * (4 * spec.columns + 6 * spec.rows)


def _microseconds(backend: Backend, x: Tensor, prepared: Prepared) -> float:
    """Device time of one call, in a replayed CUDA graph."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def timed(work: object) -> float:
        events[0].record()
        work()  # type: ignore[operator]
        events[1].record()
        events[1].synchronize()
        return float(events[0].elapsed_time(events[1]))

    def call() -> None:
        backend(x, prepared, None)

    side = torch.cuda.Stream(x.device)
    with torch.cuda.stream(side):
        call()
        calls = max(1, math.ceil(LEAST_MILLISECONDS / max(1e-3, timed(call))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(calls):
                call()
        graph.replay()
        return median(timed(graph.replay) for _ in range(REPLAYS)) / calls * 1e3
