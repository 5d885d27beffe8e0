"""Benchmarks of kernels and layers: which linears, patterns and numbers of tokens, and where results go."""

from __future__ import annotations

import importlib.util
import math
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bench.case import KERNEL, LAYER
from ..bench.clock import Clock, clock_for
from ..bench.compare import Comparison, compare
from ..bench.machine import Sensors, machine_of
from ..bench.page import write_page
from ..bench.png import png_package
from ..bench.published import Beside, beside
from ..bench.results import Results, open_results, read_results
from ..bench.suite import Outcome, Suite, measure
from ..bench.summary import write_summary
from ..bench.tables import Table, speed_table, tables
from ..bench.ways import PRECISIONS
from ..checkpoint.reader import Checkpoint
from ..checkpoint.staging import write_file, writing
from ..core.choices import HOSTS
from ..core.patterns import ALL, BlockPattern, parse_pattern
from ..errors import InputError, pick
from ..progress import Progress, silent
from .options import BenchOptions
from .settings import choose_device
from .tuned_linears import MODELS, layer_shapes, of_model
from .tuning import host_of

DEFAULT_MODELS = ("Llama-3.2-1B", "Qwen2.5-7B")
DEFAULT_PRECISIONS = ("int8", "fp8", "bf16")
TOKENS = tuple(1 << octave for octave in range(6, 17))
SQUARES = tuple(1 << octave for octave in range(6, 15))
"""What the published tables have: 64 to 65536 tokens, squares of 64 to 16384."""
QUICK_MODEL, QUICK_PRECISION, QUICK_PATTERNS = "Llama-3.2-1B", "int8", ("2:4", "2:6", "2:8")
QUICK_TOKENS, QUICK_TOKENS_CPU = (1, 16, 64, 256, 1024, 4096), (1, 4)
SPEED_TABLE = "speed_table.csv"
"""In the folder of `bench layer`: what `plan` and `allocate` take as --speed-table."""


@dataclass(frozen=True)
class Benched:
    """The results of a run and of those before it in the folder, and the tables that follow."""

    results: Results
    tables: list[Table]
    outcome: Outcome


def bench_kernel(
    options: BenchOptions | None = None, progress: Progress = silent, clock: Clock | None = None
) -> Benched:
    """Time products alone, of activations that are quantized already. clock: other than the device's own.

    InputError for unknown words, and for results of another machine in the folder.
    """
    return _bench(KERNEL, options or BenchOptions(), progress, clock)


def bench_layer(
    options: BenchOptions | None = None, progress: Progress = silent, clock: Clock | None = None
) -> Benched:
    """Time whole linears, bfloat16 in and out, as `bench_kernel`; also writes a speed table for `plan`."""
    return _bench(LAYER, options or BenchOptions(), progress, clock)


def bench_compare(a: str | Path, b: str | Path) -> Comparison:
    """Set the results of two folders beside each other: how many times faster b is. InputError if they have nothing in
    common, or are damaged."""
    return compare(read_results(Path(a)), read_results(Path(b)))


def bench_published(run: str | Path, gpu: str | None = None) -> Beside:
    """Set the results of a folder beside the times that SlideSparse published for the GPU of the same architecture.

    gpu: another published one, such as a100. InputError if nothing was published of what the folder has.
    """
    return beside(read_results(Path(run)), gpu)


def _bench(level: str, options: BenchOptions, progress: Progress, clock: Clock | None) -> Benched:
    if options.png:
        png_package()  # what is missing is found before the work
    device = torch.device(choose_device(options.device))
    suite = suite_of(level, options, device)
    host = options.host or (HOSTS[1] if importlib.util.find_spec("vllm") and device.type == "cuda" else HOSTS[0])
    host = pick(host, HOSTS, "host")
    results = open_results(options.out or Path(f"bench-{level}"), level, machine_of(device))
    clock = clock or clock_for(device)
    if not results.ceilings:
        results.ceilings = clock.ceilings()
    results.save()  # a folder that cannot be written is found before the work
    on_gpu = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with host_of(host) as program, Sensors(device) as sensors, on_gpu:
        cases = suite.cases(device, program)
        seconds = math.inf if options.budget is None else options.budget
        outcome = measure(cases, results, device, clock, sensors, progress, seconds)
    found = tables(results.rows.values())
    write_page(results, found, png=options.png)
    write_summary(results, found)
    if level == LAYER:
        _write_speed_table(results, found)
    return Benched(results, found, outcome)


def suite_of(level: str, options: BenchOptions, device: torch.device) -> Suite:
    """What the options ask for. InputError for unknown words."""
    quick = options.quick
    models = words(options.model) or ((QUICK_MODEL,) if quick else DEFAULT_MODELS)
    precisions = words(options.scheme) or ((QUICK_PRECISION,) if quick else DEFAULT_PRECISIONS)
    patterns = words(options.pattern) or (QUICK_PATTERNS if quick else tuple(map(str, ALL)))
    few = QUICK_TOKENS if device.type == "cuda" else QUICK_TOKENS_CPU
    tokens = numbers(options.tokens, "tokens") or (few if quick else TOKENS)
    squares = SQUARES if options.square == "all" else numbers(options.square, "square")
    shapes = {_name(model): _linears(model) for model in models}
    known = tuple(pick(name, PRECISIONS, "scheme") for name in precisions)
    return Suite(level, shapes, squares, known, tuple(map(_pattern, patterns)), tokens)


def words(text: str | None) -> tuple[str, ...]:
    """Words between commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def numbers(text: str | None, name: str) -> tuple[int, ...]:
    """Whole numbers between commas, ascending. InputError for others; name: of the option."""
    given = words(text)
    if wrong := [word for word in given if not re.fullmatch("[1-9][0-9]{0,8}", word)]:
        raise InputError(f"--{name} {wrong[0]} is no whole number from 1 on", hint=f"--{name} 1,16,1024")
    return tuple(sorted({int(word) for word in given}))


def _pattern(word: str) -> str:
    found = parse_pattern(word)
    if not isinstance(found, BlockPattern):
        raise InputError(
            f"--pattern {word}: only 2:L patterns are measured here", hint="slideconvert bench serve has groups"
        )
    return str(found)


def _name(model: str) -> str:
    return model if model in MODELS else Path(model).name


def _linears(model: str) -> dict[str, tuple[int, int]]:
    """Names and shapes of the linears of a layer, fused as vLLM does: of a model that is known, or of a checkpoint."""
    if model in MODELS or not Path(model).is_dir():
        shapes = of_model(model, 1, fused=True)
        return {name: shape for shape, names in shapes.items() for name in names}
    return layer_shapes(Checkpoint.open(Path(model)))


def _write_speed_table(results: Results, found: list[Table]) -> None:
    device = results.machine["device"]
    gpu = re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")
    about = ("slideconvert bench layer", *(f"{name} {value}" for name, value in results.machine.items()))
    text = speed_table(found, gpu, about)
    with writing(results.folder):
        write_file(results.folder / SPEED_TABLE, text.encode())
