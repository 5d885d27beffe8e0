"""Targets on the command line, a speed-up or a density, and the tables of times that belong to the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import options

if TYPE_CHECKING:
    from ..allocate.choose import Target
    from ..allocate.expected import Expected
    from ..allocate.speed import SpeedTable
    from ..plan.linear import LinearPlan

target_options = options(
    click.option(
        "--target-speedup", type=float, metavar="X", help="Choose patterns: linears X times as fast as dense."
    ),
    click.option("--density", type=float, metavar="X", help="Or instead: this share of the weights left, as 0.75."),
)
times_options = options(
    click.option("--gpu", metavar="GPU", help="Whose times count: a100, h100, h200, b200, rtx4090, rtx5080, gb10."),
    click.option("--tokens", type=click.IntRange(1), help="Tokens at once that count.  [default: 4096]"),
    click.option("--speed-table", type=click.Path(path_type=Path), help="CSV file of your own times."),
)
TIMES = ("gpu", "tokens", "speed_table")
TARGETS = ("target_speedup", "density", *TIMES)
"""The parameters that these options give."""


def take(said: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Takes these parameters out of `said`."""
    return {word: said.pop(word) for word in words}


def parse_target(
    *, target_speedup: float | None, density: float | None, tokens: int | None, **table: Any
) -> Target | None:
    """The target that the flags ask for, None for none. InputError for flags that do not go together."""
    from ..allocate.choose import DensityTarget, SpeedTarget
    from ..allocate.speed import DEFAULT_TOKENS
    from ..errors import InputError

    if target_speedup is None:
        said = [name for name, value in {**table, "tokens": tokens}.items() if value is not None]
        if said:
            raise InputError(
                f"--{said[0].replace('_', '-')} belongs to --target-speedup",
                hint="slideconvert plan --gpu shows what any recipe gains",
            )
        return None if density is None else DensityTarget(density)
    if density is not None:
        raise InputError("--target-speedup and --density are two targets", hint="give one of them")
    times = load_table(**table)
    if times is None:
        raise InputError(
            f"--target-speedup {target_speedup:g}: on which GPU?", hint="--gpu a100, or a --speed-table of your own"
        )
    return SpeedTarget(target_speedup, times, tokens or DEFAULT_TOKENS)


def load_table(*, gpu: str | None, speed_table: Path | None) -> SpeedTable | None:
    """The times of a GPU, from a file if one is given; None if neither is. InputError with the nearest GPU."""
    from ..allocate.rows import read_rows
    from ..allocate.speed import SpeedTable
    from ..errors import InputError, pick

    if speed_table is None:
        return SpeedTable.load(gpu) if gpu else None
    source, rows = read_rows(speed_table)
    gpus = list(dict.fromkeys(row.gpu for row in rows))
    if gpu is None and len(gpus) > 1:
        raise InputError(f"{speed_table}: times of {', '.join(gpus)}", hint="say which with --gpu")
    word = pick(gpu, gpus, f"GPU in {speed_table}:") if gpu else gpus[0]
    return SpeedTable(word, source, tuple(row for row in rows if row.gpu == word))


def expect(linears: Sequence[LinearPlan], *, tokens: int | None, **table: Any) -> tuple[Expected, SpeedTable] | None:
    """What the times promise for planned linears, and the table they are from; None if no GPU is named."""
    from ..allocate.expected import expected_speedup
    from ..allocate.speed import DEFAULT_TOKENS
    from ..errors import InputError

    times = load_table(**table)
    if times is None:
        if tokens is not None:
            raise InputError("--tokens belongs to --gpu", hint="say on which GPU")
        return None
    return expected_speedup(linears, times, tokens or DEFAULT_TOKENS), times
