"""Benchmarks: kernels and layers on this device, and the comparison of two runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..api.options import BenchOptions, ServeBenchOptions
from .common import Folder, echo_json, show
from .options import Display, ResultDisplay, command
from .progress import progress_bar

if TYPE_CHECKING:
    from ..api.bench import Benched
    from ..bench.published import Beside
    from ..bench.tables import Table
    from .columns import Table as Shown


PUBLISHED = "published"
"""What stands for the published table where a folder is compared."""


@command("kernel", BenchOptions, display=ResultDisplay, without=("verbose",))
def bench_kernel_command(options: BenchOptions, display: Display) -> None:
    """Time products alone, dense and of every pattern, of activations that are quantized already.

    \b
      slideconvert bench kernel --quick
      slideconvert bench kernel --model Qwen2.5-7B --scheme int8 --budget 600

    Every output is compared with float64 before it is timed. The folder of --out keeps the results: run the command
    again to go on. Its index.html has the tables and figures.
    """
    from ..api.bench import bench_kernel

    with progress_bar(display.shown) as progress:
        found = bench_kernel(options, progress)
    _tell(found, display)


@command("layer", BenchOptions, display=ResultDisplay, without=("verbose",))
def bench_layer_command(options: BenchOptions, display: Display) -> None:
    """Time whole linears as a model runs them: quantize and lift, multiply, scale; bfloat16 in and out.

    \b
      slideconvert bench layer --quick
      slideconvert plan MODEL --gpu NAME --speed-table bench-layer/speed_table.csv

    As bench kernel; auto is what a served model runs (slideconvert tune measures what that needs).
    """
    from ..api.bench import bench_layer

    with progress_bar(display.shown) as progress:
        found = bench_layer(options, progress)
    _tell(found, display)


@command("serve", ServeBenchOptions, display=ResultDisplay, without=("verbose",))
@click.argument("ckpts", metavar="[CKPT]...", nargs=-1, type=Folder())
def bench_serve_command(ckpts: tuple[Path, ...], options: ServeBenchOptions, display: Display) -> None:
    """Serve checkpoints in vLLM and measure throughput and latency: the first CKPT is the baseline.

    \b
      slideconvert bench serve dense-int8/ out/ --batch 1,16 --rate 2,8
      slideconvert bench serve --model Qwen2.5-7B --scheme int8,fp8 --memory 0,1
      slideconvert bench serve --preset gqsa-table-16 --together 3
      slideconvert bench serve --quick

    Without CKPT, random weights with the shapes of a model are converted, and compared with what stock vLLM makes of
    dense ones. Every checkpoint has an engine of its own.
    """
    from ..api.bench_serve import bench_serve

    with progress_bar(display.shown) as progress:
        found = bench_serve(ckpts, options, progress)
    _tell(found, display)


def _tell(found: Benched, display: Display) -> None:
    results, outcome = found.results, found.outcome
    failures = [row for row in results.rows.values() if row.failure]
    if display.as_json:
        echo_json(
            {
                "folder": str(results.folder),
                "level": results.level,
                "machine": results.machine,
                **asdict(outcome),
                "failures": [row.flat() for row in failures],
                "tables": [table_json(table) for table in found.tables],
            }
        )
        return
    for table in found.tables:
        show(speedup_table(table))
    words = f"{outcome.measured} cases measured, {len(results.rows) - len(failures)} in {results.folder}"
    if failures:
        words += f"; {len(failures)} failed (the last table of index.html says why)"
    if outcome.left:
        words += f"; {outcome.left} are left: run it again"
    show(f"{words}\n{results.folder / 'index.html'}")


def speedup_table(found: Table) -> Shown:
    """A row a number of tokens, or of what a server is asked for: the baseline, and speed-ups over it."""
    from .columns import Column, table

    words = ", ".join(word for word in (found.model, found.precision, found.level, found.chosen) if word)
    patterns = [Column(name, spare) for spare, name in enumerate(found.patterns)]
    made = table(f"{words}: speed-up over {found.over()}", [found.axis], [f"{found.baseline}, {found.unit}", *patterns])
    for tokens in found.tokens:
        base = found.baselines.get(found.baseline, {}).get(tokens)
        cells = [found.speedup(pattern, tokens) for pattern in found.patterns]
        made.add_row(
            f"{tokens:g}",
            "–" if base is None else f"{base:.1f}",
            *("–" if cell is None else f"{cell:.2f}" for cell in cells),
        )
    return made


def table_json(found: Table) -> dict[str, Any]:
    """A table with its speed-ups over every baseline."""
    lines = [
        {
            "tokens": tokens,
            "baselines_us": {name: times[tokens] for name, times in found.baselines.items() if tokens in times},
            "patterns_us": {name: times[tokens] for name, times in found.patterns.items() if tokens in times},
            "speedups": {
                baseline: {name: found.speedup(name, tokens, baseline) for name in found.patterns}
                for baseline in found.baselines
            },
            "efficiency": {name: found.efficiency(name, tokens) for name in found.patterns},
        }
        for tokens in found.tokens
    ]
    names = ("level", "model", "precision", "chosen", "axis", "shapes", "baseline")
    return {**{name: getattr(found, name) for name in names}, "rows": lines}


@command("compare", display=ResultDisplay, without=("verbose", "quiet"))
@click.argument("a", type=Folder())
@click.argument("b", type=Folder())
def bench_compare_command(a: Path, b: Path, display: Display) -> None:
    """Compare two runs, machines or commits: how many times faster B is than A, case by case.

    \b
      slideconvert bench compare before/ after/
      slideconvert bench compare bench-kernel/ published

    A and B are folders that bench kernel, layer or serve wrote. B may be the word published: the INT8 times that
    SlideSparse published (arXiv 2603.05232) for the GPU of A's architecture; published:a100 names another GPU.
    """
    word, _, gpu = str(b).partition(":")
    if word == PUBLISHED:
        _tell_published(a, gpu or None, display)
        return
    from ..api.bench import bench_compare
    from .columns import Column, table

    found = bench_compare(a, b)
    if display.as_json:
        echo_json(found.to_json())
        return
    labels = (
        ["model", "checkpoint", "setting", "load"]
        if found.level == "serve"
        else ["model", "precision", "pattern", "way"]
    )
    columns = (Column("cases", 2), "mean", Column("least", 3), Column("most", 4), Column("apart", 1))
    made = table("Times as fast as A", labels, columns)
    for group in found.groups:
        numbers = (f"{group.mean:.3f}", f"{group.least:.3f}", f"{group.most:.3f}", str(group.apart))
        made.add_row(*group.label, str(group.cases), *numbers)
    show(made)
    for name, (first, second) in found.machines.items():
        show(f"{name}: A {first}, B {second}")
    show("apart: cases whose samples do not overlap")
    if found.only_a or found.only_b:
        show(f"{found.only_a} cases are in A alone, {found.only_b} in B alone")


def _tell_published(run: Path, gpu: str | None, display: Display) -> None:
    from ..api.bench import bench_published

    found = bench_published(run, gpu)
    if display.as_json:
        echo_json(found.to_json())
        return
    for model in found.models:
        for shown in published_tables(found, model):
            show(shown)
    for note in found.notes:
        show(note)


def published_tables(found: Beside, model: str) -> tuple[Shown, Shown]:
    """Speed-ups, theirs and ours; and how many times faster ours is than theirs, dense included."""
    from .columns import Column, table

    lines = found.of(model)
    patterns = list(dict.fromkeys(pattern for of in lines.values() for pattern in of))
    columns = [Column(name, spare) for spare, name in enumerate(patterns)]
    gains = table(
        f"{model}, int8: speed-up over the dense product, published on {found.gpu} -> ours", ["tokens"], columns
    )
    times = [Column("dense, published, µs"), Column("ours, µs"), Column("ours is faster"), *columns]
    faster = table(f"{model}, int8: times as fast as published on {found.gpu}", ["tokens"], times)
    for tokens, of in lines.items():
        some = [of.get(pattern) for pattern in patterns]
        gains.add_row(
            str(tokens),
            *(f"{_number(one.theirs_speedup)} -> {_number(one.ours_speedup)}" if one else "–" for one in some),
        )
        dense = next(iter(of.values()))
        cells = [_number(dense.theirs_dense, 1), _number(dense.ours_dense, 1), _number(dense.dense_ratio)]
        faster.add_row(str(tokens), *cells, *(_number(one.ratio) if one else "–" for one in some))
    return gains, faster


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
