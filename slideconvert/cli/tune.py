"""Tuning: measure the kernels on this GPU, once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..api.options import TuneOptions
from .common import Folder, echo_json, show
from .options import Display, ResultDisplay, command
from .progress import progress_bar


@command("tune", TuneOptions, display=ResultDisplay, without=("verbose",))
@click.argument("ckpt", metavar="[CKPT]", required=False, type=Folder())
def tune_command(ckpt: Path | None, options: TuneOptions, display: Display) -> None:
    """Measure the ways to run the linears of the checkpoint CKPT on this GPU, and keep the times.

    \b
      slideconvert tune out/ --host vllm

    Loading the checkpoint then measures nothing. What is known is not measured again: an interrupted run goes on.
    """
    from ..api.tuning import tune
    from .tables import tuned_table

    with progress_bar(display.shown) as progress:
        found = tune(ckpt, options, progress)
    if display.as_json:
        rows = [{**asdict(one), "speedups": one.speedups} for one in found.linears]
        echo_json({**asdict(found), "linears": rows})
        return
    show(tuned_table(found))
    note = f", {found.left} are missing: run tune again" if found.left else ""
    show(f"{found.measured} times measured in {found.seconds:.0f} s{note}")
