"""Write the speed table of an H200 for `plan` and `allocate` from the tables of measured times that the package has:

    python benches/ship_speed.py slideconvert/allocate/speed_h200.csv

Run it after ship_tables.py: a test compares the file with the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from slideconvert.bench.tables import BEST, Table, speed_table
from slideconvert.bench.ways import STOCK
from slideconvert.core.patterns import ALL
from slideconvert.kernels.backends.rule import BUCKETS
from slideconvert.kernels.backends.table import SHIPPED, parse
from slideconvert.kernels.backends.table import Table as Measured
from slideconvert.kernels.bench_common import MODELS

GPU = "h200"
FILE = SHIPPED / "nvidia-h200-vllm-0.24.json"
SCHEMES = ("int8", "fp8")


def least(measured: Measured, linear: str, ways: Iterable[str] = ()) -> dict[int, float]:
    """Microseconds of the fastest way of a linear by tokens, among these ways if any are named."""
    found: dict[int, float] = {}
    for way, times in measured.of(linear).items():
        if not ways or way in ways:
            for tokens, taken in times.items():
                if taken is not None:
                    found[tokens] = min(taken, found.get(tokens, taken))
    return found


def layer(measured: Measured, model: str, scheme: str) -> Table:
    """All linears of a layer of a model: vLLM's dense ones, and the fastest sparse way of each."""
    shapes = MODELS[model]

    def summed(pattern: str, ways: Iterable[str] = ()) -> dict[float, float]:
        every = [least(measured, f"{rows}x{columns} {scheme} {pattern}", ways) for rows, columns in shapes.values()]
        return {tokens: sum(one[tokens] for one in every) for tokens in BUCKETS if all(tokens in one for one in every)}

    patterns = {str(pattern): summed(str(pattern)) for pattern in ALL if pattern.prunes}
    return Table(
        level="layer",
        model=model,
        precision=scheme,
        chosen=BEST,
        shapes=shapes,
        baselines={STOCK: summed("2:inf", [STOCK])},
        patterns={name: times for name, times in patterns.items() if times},
    )


def text(path: Path = FILE) -> str:
    """The CSV of a table of measured times."""
    measured = parse(path.read_bytes())
    key = measured.key.series
    about = [
        "Speed of whole INT8 and FP8 linears on one H200, measured by slideconvert tune, from "
        f"kernels/backends/tables/{path.name}: vLLM {key.vllm}, torch {key.torch}, triton {key.triton}, "
        f"cuSPARSELt {measured.key.cusparselt}. Written by benches/ship_speed.py.",
        "dense: microseconds of vLLM's own dense linears, sum over the linears of one decoder layer.",
        "2:L: how many times faster our fastest sparse way of each linear is. Quantizing, lifting and scaling count in "
        "both.",
        "A server that keeps one weight of a linear uses it only where no number of tokens would be slower than dense; "
        "SLIDESPARSE_MEMORY=1 lets it keep two.",
    ]
    tables = [layer(measured, model, scheme) for scheme in SCHEMES for model in MODELS]
    return speed_table(tables, GPU, about)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def main(out: Path) -> None:
    """Write the table to OUT."""
    out.write_text(text())


if __name__ == "__main__":
    main()
