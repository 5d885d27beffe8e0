"""allocate: a pattern for each group of fused linears, by what it costs and what it gains."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click

from ..api.options import AllocateOptions, option
from .common import echo_json, show, source_argument
from .options import Display, command
from .progress import progress_bar


@dataclass(frozen=True)
class ErrorDisplay(Display):
    """Of a command whose details are the measured errors."""

    verbose: bool = option("Print all measured errors, a line for each group.", default=False, flag="-v/--verbose")


@command("allocate", AllocateOptions, ErrorDisplay)
@source_argument
@click.argument("recipe_out", type=click.Path(path_type=Path))
def allocate_command(source: str, recipe_out: Path, options: AllocateOptions, display: Display) -> None:
    """Choose a pattern for each group of fused linears of SOURCE and write the recipe into the file RECIPE_OUT.

    \b
      slideconvert allocate MODEL fast.yaml --target-speedup 1.3 --gpu a100
      slideconvert allocate MODEL small.yaml --density 0.75

    Each group (q/k/v, o, gate/up, down of every layer) is pruned alone with every pattern that could pay, and measured.
    The patterns chosen are those of least summed error that meet --target-speedup or --density. Patterns in the rules
    of a --recipe stay as they are. Measuring takes about as long as a few conversions.
    """
    from ..api.convert import allocate
    from .choices import chosen_json, chosen_summary, chosen_table, uniform_table

    started = time.monotonic()
    with progress_bar(display.shown) as progress:
        chosen = allocate(source, recipe_out, options, progress=progress)
    seconds = time.monotonic() - started
    if display.as_json:
        echo_json({"recipe": str(recipe_out), **chosen_json(chosen), "seconds": round(seconds, 3)})
    elif display.shown:
        show(chosen_table(chosen, every_error=display.verbose))
        show(uniform_table(chosen))
        show(chosen_summary(chosen))
        show(f"time     {seconds:.1f} s\nwrote    {recipe_out}")
