"""Put tables of measured times into the package, from the cache of the machine where `slideconvert tune` ran.

    slideconvert tune --model Qwen2.5-7B --host vllm    # on the GPU, for each model
    python benches/ship_tables.py ~/.cache/slidesparse kernels/backends/tables

Times of other kernels than those of this working tree are left out: nothing would ever take them. What shipped before
stays where nothing newer was measured: `tune` measures nothing that a shipped table has.
"""

from __future__ import annotations

from pathlib import Path

import click

from slideconvert.kernels.backends.choose import BACKENDS
from slideconvert.kernels.backends.table import Table, parse
from slideconvert.kernels.sources import versioned

AUTOTUNED = ("dense_gemm", "sparse_gemm")
"""Operations whose candidates are timed."""


def file_name(table: Table) -> str:
    """nvidia-h200-vllm-0.24.json"""
    key = table.key
    gpu = key.gpu.lower().replace(" ", "-")
    return f"{gpu}-{key.host}{'-' if key.vllm else ''}{key.series.vllm}.json"


def current(table: Table) -> Table:
    """Without what was measured of other kernels."""
    names = {kind.timed_name() for kind in BACKENDS}
    kept = {way for ways in table.times.values() for way in ways if "@" not in way or way in names}
    times = {
        linear: found
        for linear, ways in table.times.items()
        if (found := {way: taken for way, taken in ways.items() if way in kept})
    }
    choices = {
        what: chosen
        for what, chosen in table.choices.items()
        if what in {versioned(what.partition("@")[0], operation) for operation in AUTOTUNED}
    }
    return Table(table.key, times, choices)


def ship(cache: Path, out: Path) -> list[Path]:
    """Write what every table of `cache` has of these kernels into `out`, with what a table there has of them."""
    written: dict[str, Table] = {}
    for path in sorted(cache.glob("times-*.json")):
        table = current(parse(path.read_bytes()))
        if not table.times:
            click.echo(f"{path.name}: of other kernels, left out", err=True)
            continue
        name = file_name(table)
        if name not in written and (out / name).exists():
            written[name] = current(parse((out / name).read_bytes()))
        before = written.get(name, Table(table.key))
        before.merge(table)
        written[name] = Table(table.key, before.times, before.choices)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in written.items():
        (out / name).write_text(table.text())
    return [out / name for name in written]


@click.command()
@click.argument("cache", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(cache: Path, out: Path) -> None:
    """Write the tables in CACHE into OUT."""
    for path in ship(cache, out):
        click.echo(f"{path}: times of {len(parse(path.read_bytes()).times)} linears, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
