"""The options of the benchmarks."""

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
        "Folder for results.json, results.csv, tables.csv and index.html; what it has is not measured again."
        "  [default: bench-kernel, bench-layer or bench-serve]",
        metavar="DIR",
    )
    png: bool = option("Figures as PNG too (pip install 'slideconvert[png]').", default=False)


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
        "Minutes instead of an hour: Llama-3.2-1B, INT8, three patterns and a few numbers of tokens; on a CPU less "
        "than two minutes, 1 and 4 tokens.",
        default=False,
    )
    host: str | None = option(
        "Program whose dense kernels are the baseline.  [default: vllm if it is installed]", choices=choices.HOSTS
    )
    budget: int | None = option("Seconds after which to stop; run again to go on.  [default: none]", minimum=1)


@dataclass(frozen=True)
class ServeBenchOptions(DeviceOptions, BenchOutputOptions):
    """Options of `bench serve`."""

    HEADING: ClassVar[str] = "Benchmark"

    model: str | None = option(
        "Without CKPT: random weights of this model's shapes.  [default: Llama-3.2-1B]", choices=choices.SHAPED
    )
    layers: int | None = option("Without CKPT: layers, if other than the model has.", minimum=1)
    preset: str | None = option(
        "The settings and lengths of a published table; other options change parts of it.", choices=choices.SERVED
    )
    scheme: str | None = option(
        "Without CKPT: int8, fp8, bf16, w4a16, w8a16, separated by commas.  [default: bf16,int8,fp8]", metavar="NAME,…"
    )
    pattern: str | None = option(
        "Without CKPT: patterns, 2:L and of groups.  [default: 2:4,2:6,2:8 and 1x16:50%]", metavar="2:L,…"
    )
    memory: str | None = option(
        "What a second prepared weight may take, as shares of the packed one.  [default: 0]", metavar="SHARE,…"
    )
    unfused: bool = option("Also without the fusion of norms and gates with quantization.", default=False)
    batch: str | None = option("Sequences that are decoded at once.  [default: 1,4,16,64]", metavar="N,…")
    prefill: str | None = option(
        "Prompts and their tokens, all in one step.  [default: 8x1024,32x1024]", metavar="NxTOKENS,…"
    )
    lengths: str | None = option(
        "Tokens of an output: one sequence from its prompt to the last of them; without --batch and --prefill alone.",
        metavar="N,…",
    )
    graphs: str | None = option(
        "Tokens of a step for which CUDA graphs are captured, beside --batch; short prompts want them.", metavar="N,…"
    )
    mixed: str | None = option("Requests of several lengths that are there at once.", metavar="N,…")
    rate: str | None = option("Requests per second that arrive at random: latency.", metavar="N,…")
    prompt: int | None = option("Tokens of each prompt that is decoded after.  [default: 32]", minimum=1)
    output: int | None = option("Tokens that are decoded.  [default: 128]", minimum=2)
    quick: bool = option("Minutes: INT8 2:4 and dense, two batches, one prefill.", default=False)
    together: int | None = option(
        "Engines that start side by side; each needs GPU memory for its whole model.  [default: 1; 2 with --quick]",
        minimum=1,
    )
    limit: int | None = option("Seconds for a start, and again for measuring.  [default: 600]", minimum=1)
    budget: int | None = option(
        "Seconds: no engine starts that may not be ready by then; run again to go on.  [default: none]", minimum=1
    )
    work: Path | None = option("Folder for checkpoints while they are served.  [default: OUT/work]", metavar="DIR")
