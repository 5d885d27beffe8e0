"""Markdown tables of benchmark runs, for benches/measured.

    slideconvert bench kernel --out bench-kernel && cp bench-kernel/tables.csv benches/results/h200-kernel.csv
    python -m benches.tables benches/results/h200-kernel.csv
    python -m benches.tables benches/results/*.csv --over bf16 --precision int8

A table for each model, precision and load: the time of the baseline and, in each column of a pattern, how many times
faster it is. What the run was measured on stands above.
"""

from __future__ import annotations

from pathlib import Path

import click

from slideconvert.bench.summary import digits, read_summary
from slideconvert.bench.tables import BASELINES, Table
from slideconvert.errors import InputError

SHOWN = ("device", "slideconvert", "torch", "vllm", "transformers", "driver", "power_limit_watts")
"""The facts that a document needs."""


def markdown(table: Table, over: str) -> str:
    """A row for each size. over: the baseline."""
    words = ", ".join(word for word in (table.model, table.precision, table.level, table.chosen) if word)
    head = [table.axis, f"{over}, us", *table.patterns]
    lines = [f"{words}; times as fast as {over}", "", _row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for size in table.tokens:
        base = table.baselines[over].get(size)
        gains = [table.speedup(pattern, size, over) for pattern in table.patterns]
        cells = [
            "" if base is None else f"{digits(base):,.10g}",
            *("" if gain is None else f"{gain:.2f}" for gain in gains),
        ]
        lines.append(_row([f"{size:,g}", *cells]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--over", type=click.Choice(list(BASELINES)), help="The baseline.  [default: the first that was measured]"
)
@click.option("--precision", help="Tables of this precision alone.")
def main(files: tuple[Path, ...], over: str | None, precision: str | None) -> None:
    """Print the tables of FILES, each a tables.csv of slideconvert bench."""
    for path in files:
        try:
            found = read_summary(path)
        except InputError as error:
            raise click.ClickException(str(error)) from error
        shown = [fact for fact in found.facts if fact.partition(":")[0] in SHOWN or ":" not in fact]
        click.echo(f"`{path.name}`: {' · '.join(shown)}\n")
        for table in found.tables:
            baseline = over or table.baseline
            if precision in (None, table.precision) and table.baselines.get(baseline):
                click.echo(f"{markdown(table, baseline)}\n")


if __name__ == "__main__":
    main()
