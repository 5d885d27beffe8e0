"""Which of two backends is faster for a linear, by measuring both, on this device, at several numbers of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from ..windows import group_of
from .base import Backend, Codes, LinearSpec

TOKENS = (16, 128, 1024, 8192)
"""Numbers of tokens that are measured: decoding, and prompts."""
LEAST_MILLISECONDS = 1.0
"""Of work in one timed replay."""
REPLAYS = 5


@dataclass(frozen=True)
class Comparison:
    """Microseconds of a whole call (quantize, product, scales) by number of tokens, of the sparse and the dense way."""

    sparse: dict[int, float]
    dense: dict[int, float]

    def speedup(self, tokens: int) -> float:
        """Of sparse over dense, at the measured number that is nearest in proportion."""
        nearest = min(self.sparse, key=lambda measured: abs(math.log(max(1, tokens) / measured)))
        return self.dense[nearest] / self.sparse[nearest]

    @property
    def overall(self) -> float:
        """The geometric mean of the speed-ups, decoding and prompts weighing alike."""
        return math.exp(sum(math.log(self.speedup(tokens)) for tokens in self.sparse) / len(self.sparse))

    def __str__(self) -> str:
        return ", ".join(f"{self.speedup(tokens):.2f}x at {tokens}" for tokens in self.sparse)


@cache
def compare(sparse: Backend, dense: Backend) -> Comparison:
    """Measure both once per process. Random weights that follow the pattern, bfloat16 activations."""
    with torch.cuda.device(sparse.device):
        return _compare(sparse, dense)


def _compare(sparse: Backend, dense: Backend) -> Comparison:
    spec, device = sparse.spec, sparse.device
    codes = Codes(spec, dense=_random_codes(spec, device))
    scale = torch.ones(spec.rows, dtype=torch.float32, device=device)
    times: list[dict[int, float]] = []
    for backend in (sparse, dense):
        operand = backend.prepare(codes)
        times.append({})
        for tokens in TOKENS:
            if _bytes(spec, tokens) > torch.cuda.mem_get_info(device)[0] // 2:
                break
            x = torch.randn(tokens, spec.columns, dtype=torch.bfloat16, device=device)
            times[-1][tokens] = _microseconds(backend, x, operand, scale)
        del operand
    return Comparison(*times)


def _bytes(spec: LinearSpec, tokens: int) -> int:
    """What a call at this size takes, roughly: activations, codes, sums, output."""
    return tokens * (2 * spec.columns + spec.slid + 6 * spec.rows)


def _random_codes(spec: LinearSpec, device: torch.device) -> Tensor:
    group, windows = group_of(spec.length)
    codes = torch.randint(1, 100, (spec.rows, -(-spec.columns // group), group), dtype=torch.int8, device=device)
    codes[..., 2 * windows :] = 0
    return codes.flatten(1)[:, : spec.columns].contiguous().view(spec.dtype)


def _microseconds(backend: Backend, x: Tensor, operand: Tensor, scale: Tensor) -> float:
    """Of one call, in a replayed CUDA graph: without the host's share."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def timed(work: object) -> float:
        events[0].record()
        work()  # type: ignore[operator]
        events[1].record()
        events[1].synchronize()
        return events[0].elapsed_time(events[1])

    def call() -> None:
        backend(x, operand, scale, None)

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
