"""Code that all benches share: the shapes of real models, device and wall time, tables."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

MODELS = {
    # linears as servers fuse them: N, K
    "Llama-2-7B": {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)},
    "Llama-2-13B": {"qkv": (15360, 5120), "o": (5120, 5120), "gate_up": (27648, 5120), "down": (5120, 13824)},
    "Llama-3.2-1B": {"qkv": (3072, 2048), "o": (2048, 2048), "gate_up": (16384, 2048), "down": (2048, 8192)},
    "Llama-3.2-3B": {"qkv": (5120, 3072), "o": (3072, 3072), "gate_up": (16384, 3072), "down": (3072, 8192)},
    "Qwen2.5-7B": {"qkv": (4608, 3584), "o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944)},
    "Qwen2.5-14B": {"qkv": (7168, 5120), "o": (5120, 5120), "gate_up": (27648, 5120), "down": (5120, 13824)},
    "BitNet-2B": {"qkv": (3840, 2560), "o": (2560, 2560), "gate_up": (13824, 2560), "down": (2560, 6912)},
}
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
BEYOND_CACHE = 150_000_000
"""Bytes of inputs that calls rotate through, so that none is in the cache (60 MB on an H200)."""
LEAST_MILLISECONDS = 2.0
REPLAYS = 9
WARM_SECONDS = 0.4


def copies(nbytes: int, most: int = 64) -> int:
    """The number of inputs of this size that exceeds the cache."""
    return max(1, min(most, -(-BEYOND_CACHE // nbytes)))


def rotating(prepared: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """A prepared weight, and as many copies of it as exceed the cache with it."""
    count = copies(sum(one.nbytes for one in prepared))
    return [tuple(prepared), *(tuple(one.clone() for one in prepared) for _ in range(count - 1))]


def device_microseconds(call: Callable[[Any], Any], inputs: Sequence[Any]) -> float:
    """Microseconds of device time per call, with rotating inputs: the median of replays of a CUDA graph."""

    def round_of_calls() -> None:
        for one in inputs:
            call(one)

    graph, rounds = _captured(round_of_calls)
    graph.replay()
    return median(_timed(graph.replay) for _ in range(REPLAYS)) / (rounds * len(inputs)) * 1e3


@dataclass(frozen=True)
class Interleaved:
    """Microseconds of device time of calls in turn; power of the GPU and clock of its multiprocessors meanwhile."""

    microseconds: dict[str, float]
    watts: float
    megahertz: float


def interleaved(calls: Mapping[str, Callable[[], Any]]) -> Interleaved:
    """Medians of replays of the calls' CUDA graphs in turn, on a chip as warm as sustained work makes it."""
    graphs = {name: _captured(call) for name, call in calls.items()}

    def turn() -> dict[str, float]:
        return {name: _timed(graph.replay) / count * 1e3 for name, (graph, count) in graphs.items()}

    started = time.perf_counter()
    while time.perf_counter() - started < WARM_SECONDS:
        turn()
    which = f"--id=GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["nvidia-smi", which, "--query-gpu=power.draw,clocks.sm", "--format=csv,noheader,nounits", "-lms", "20"]
    taken: list[dict[str, float]] = []
    started = time.perf_counter()
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        while len(taken) < REPLAYS or time.perf_counter() - started < WARM_SECONDS:
            taken.append(turn())
        process.terminate()
        samples = [line.split(", ") for line in process.communicate()[0].splitlines()]
    found = [(float(one[0]), float(one[1])) for one in samples if len(one) == 2]
    watts, megahertz = (median(values) for values in zip(*found, strict=True)) if found else (math.nan, math.nan)
    return Interleaved({name: median(one[name] for one in taken) for name in graphs}, watts, megahertz)


def host_microseconds(call: Callable[[], Any], calls: int = 50) -> float:
    """Microseconds of host time per eager call, without waiting for the device."""
    for _ in range(10):
        call()
    found = []
    for _ in range(5 * REPLAYS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - started) / calls * 1e6)
    return median(found)


def copy_terabytes_per_second(nbytes: int = 1 << 30) -> float:
    """TB/s that a copy by torch of this many bytes reads and writes, with rotating inputs beyond the cache."""
    sets = copies(2 * nbytes)
    sources = [torch.empty(nbytes // 4, dtype=torch.int32, device="cuda").random_() for _ in range(sets)]
    pairs = [(source, torch.empty_like(source)) for source in sources]
    # torch.add instead of copy_: a graph executes copies as nodes of another kind, at another speed.
    taken = device_microseconds(lambda pair: torch.add(pair[0], 1, out=pair[1]), pairs)
    return 2 * nbytes / taken / 1e6


def _captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of so many calls that a replay takes LEAST_MILLISECONDS, or of one; and their number."""
    work()
    count = max(1, round(LEAST_MILLISECONDS / max(1e-3, _timed(work))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            work()
    return graph, count


def _timed(work: Callable[[], Any]) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def random_codes(rows: int, columns: int, length: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Codes [rows, columns] of normal numbers; the two smallest of every block of `length` columns are zero."""
    weight = torch.randn(rows, columns, device="cuda")
    codes = (
        (weight * 30).round().clamp(-127, 127).to(torch.int8)
        if dtype == torch.int8
        else (weight * 100).clamp(-448, 448).to(dtype)
    )
    if length:
        whole = columns // length * length
        order = weight[:, :whole].abs().view(rows, -1, length).argsort(-1).argsort(-1)
        codes[:, :whole].view(torch.int8).masked_fill_((order < 2).flatten(1), 0)
        codes[:, whole:].view(torch.int8).zero_()
    return codes


def header() -> str:
    import triton

    device = torch.cuda.get_device_name()
    return f"{device} · torch {torch.__version__} · triton {triton.__version__} · CUDA {torch.version.cuda}"


def arguments(description: str | None, **lists: list[Any]) -> argparse.Namespace:
    """Options that take several values, with their defaults; and --out for the numbers as JSON."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in lists.items():
        parser.add_argument(f"--{name}", nargs="+", default=default, type=type(default[0]))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def bandwidth_bench(description: str | None, **lists: list[Any]) -> tuple[argparse.Namespace, float]:
    """The options of a bandwidth bench and the bandwidth of a copy in TB/s; prints the machine."""
    options, ceiling = arguments(description, **lists), copy_terabytes_per_second()
    print(header(), f"· copy of 1 GiB {ceiling:.2f} TB/s", sep=" ")
    return options, ceiling


def table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def save(out: Path | None, rows: list[dict[str, Any]]) -> None:
    if out:
        out.write_text(json.dumps({"machine": header(), "rows": rows}, indent=1) + "\n")
