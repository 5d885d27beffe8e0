"""The options of `bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...core import choices
from .base import Options, option
from .machine import DeviceOptions


@dataclass(frozen=True)
class BenchOutputOptions(Options):
    """Where results are kept."""

    HEADING: ClassVar[str] = "Output"

    out: Path | None = option(
        "Folder for results.json, results.csv and index.html; what it has is not measured again."
        "  [default: bench-kernel, bench-layer]",
        metavar="DIR",
    )


@dataclass(frozen=True)
class BenchOptions(DeviceOptions, BenchOutputOptions):
    """Options of `bench kernel` and `bench layer`."""

    HEADING: ClassVar[str] = "Benchmark"

    model: str | None = option(
        f"Shapes to measure, separated by commas: {', '.join(choices.SHAPED)}, or a checkpoint folder."
        "  [default: Llama-3.2-1B,Qwen2.5-7B]",
        metavar="NAME,…",
    )
    square: str | None = option("Square products M = N = K of these sizes too, or 'all'.", metavar="SIZE,…")
    scheme: str | None = option("Precisions: int8, fp8, bf16, fp16.  [default: int8,fp8,bf16]", metavar="NAME,…")
    pattern: str | None = option("Patterns.  [default: 2:4 to 2:16 and 2:inf]", metavar="2:L,…")
    tokens: str | None = option("Numbers of tokens.  [default: 64 to 65536]", metavar="M,…")
    quick: bool = option(
        "Minutes instead of an hour: Llama-3.2-1B, INT8, three patterns and a few numbers of tokens.", default=False
    )
    host: str | None = option(
        "Program whose dense kernels are the baseline.  [default: vllm if it is installed]", choices=choices.HOSTS
    )
    budget: int | None = option("Seconds after which to stop; run again to go on.  [default: none]", minimum=1)
