"""allocate: a pattern for each fused group of linears, by what it costs and what it gains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from .common import (
    calibration_options,
    choose_device,
    compute_options,
    echo_json,
    json_option,
    progress_bar,
    resolve_source,
    revision_option,
    show,
    source_argument,
    verbosity_options,
)
from .convert import full_recipe, method_option, preset_option, recipe_option, scheme_option
from .targets import TARGETS, parse_target, take, target_options, times_options


@click.command("allocate")
@source_argument
@click.argument("recipe_out", type=click.Path(path_type=Path))
@target_options
@times_options
@recipe_option
@scheme_option
@preset_option
@method_option
@calibration_options
@revision_option
@compute_options
@json_option
@verbosity_options
def allocate_command(
    source: str,
    recipe_out: Path,
    recipe: Path | None,
    revision: str | None,
    device: str,
    keep_on: str,
    batch_tokens: int | None,
    precision: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **said: Any,
) -> None:
    """Choose a pattern for each group of fused linears of SOURCE and write the recipe into the file RECIPE_OUT.

    Each group (q/k/v, o, gate/up, down of every layer) is pruned alone with every pattern that could pay, and measured.
    The patterns chosen are those of least summed error that meet --target-speedup or --density. Patterns in the rules
    of a --recipe stay as they are. Measuring takes about as long as a few conversions.
    """
    from ..allocate.choose import choose_patterns
    from ..allocate.written import check_recipe_path, write_recipe
    from ..calibrate.run import RunSettings
    from ..errors import InputError
    from ..plan.plan import make_plan
    from .choices import chosen_json, chosen_summary, chosen_table, uniform_table

    target = parse_target(**take(said, TARGETS))
    if target is None:
        raise InputError("no target", hint="--target-speedup 1.2 --gpu a100, or --density 0.75")
    check_recipe_path(recipe_out)
    plan = make_plan(resolve_source(source, revision, quiet or as_json), full_recipe(recipe, **said))
    settings = RunSettings(choose_device(device), keep_on, batch_tokens, precision=precision)
    started = time.monotonic()
    with progress_bar(not (quiet or as_json)) as tell:
        chosen = choose_patterns(plan, target, settings, tell)
    write_recipe(recipe_out, chosen, plan.snapshot.id)
    seconds = time.monotonic() - started
    if as_json:
        echo_json({"recipe": str(recipe_out), **chosen_json(chosen), "seconds": round(seconds, 3)})
    elif not quiet:
        show(chosen_table(chosen, every_error=verbose))
        show(uniform_table(chosen))
        show(chosen_summary(chosen))
        show(f"time     {seconds:.1f} s\nwrote    {recipe_out}")
