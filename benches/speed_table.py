"""Write a table of times for `slideconvert allocate` and `plan` from the measurements of bench_backends on a GPU.

    python -m slideconvert.kernels.backends.bench_backends --models Qwen2.5-7B --out results.json   # on the GPU
    python benches/speed_table.py h200 results.json > h200.csv
    slideconvert plan MODEL --speed-table h200.csv

A row is the sum over the linears of one decoder layer, in microseconds of device time: the best dense way for each
linear, and how many times faster the sparse way is with each pattern.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click

from slideconvert.allocate.rows import COLUMNS
from slideconvert.core.patterns import ALL
from slideconvert.kernels.bench_common import MODELS


def speed_table(gpu: str, results: list[dict[str, Any]]) -> str:
    """The results of one or several runs of `bench_backends --out` -> CSV. ClickException if linears are missing."""
    lines: dict[tuple[str, str, int], dict[str, dict[str, float]]] = {}
    for result in results:
        for row in result["rows"]:
            layers = lines.setdefault((row["model"], row["codes"], row["tokens"]), {})
            if row["layer"] in layers:
                raise click.ClickException(f"{row['model']}, {row['codes']}, {row['tokens']} tokens was measured twice")
            layers[row["layer"]] = row["device"]
    tried = {label for layers in lines.values() for device in layers.values() for label in device}
    patterns = [str(pattern) for pattern in ALL if str(pattern) in tried]
    machines = dict.fromkeys(result["machine"] for result in results)
    out = io.StringIO()
    out.write("# Measured with `python -m slideconvert.kernels.backends.bench_backends`.\n")
    out.writelines(f"# {machine}\n" for machine in machines)
    out.write("# dense: microseconds of the best dense way of torch and Triton, sum over the linears of one layer.\n")
    out.write("# 2:L: how many times faster our sparse way is. Quantizing, lifting and scaling are counted in both.\n")
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*COLUMNS, *patterns])
    for (model, codes, tokens), layers in lines.items():
        missing = MODELS[model].keys() - layers.keys()
        if missing:
            raise click.ClickException(f"{model}, {codes}, {tokens} tokens: no times of {', '.join(sorted(missing))}")
        linears = "+".join(f"{rows}x{columns}" for rows, columns in MODELS[model].values())
        dense = sum(_best_dense(device) for device in layers.values())
        sparse = [_sum(layers, pattern) for pattern in patterns]
        speedups = ["" if total is None else f"{dense / total:.3f}" for total in sparse]
        table.writerow([gpu, codes, model, linears, tokens, f"{dense:.1f}", *speedups])
    return out.getvalue()


def _best_dense(device: dict[str, float]) -> float:
    return min(microseconds for label, microseconds in device.items() if ":" not in label)


def _sum(layers: dict[str, dict[str, float]], pattern: str) -> float | None:
    """The total; None if it was not measured for all linears."""
    found = [device[pattern] for device in layers.values() if pattern in device]
    return sum(found) if len(found) == len(layers) else None


@click.command()
@click.argument("gpu")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(gpu: str, results: tuple[Path, ...]) -> None:
    """Print the times in RESULTS (JSON of bench_backends --out) as the table of GPU, a name of your choice."""
    click.echo(speed_table(gpu, [json.loads(path.read_text()) for path in results]), nl=False)


if __name__ == "__main__":
    main()
