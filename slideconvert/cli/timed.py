"""`plan --probe`: how long each stage of a conversion takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .columns import Table, table
from .common import timed_progress
from .progress import duration

if TYPE_CHECKING:
    from ..plan.plan import Plan
    from ..plan.seconds import Forecast
    from .convert import PlanCommandOptions

UNKNOWN = "not estimated"


def planned(source: str, out: Path | None, options: PlanCommandOptions, *, shown: bool) -> tuple[Plan, Forecast | None]:
    """The plan, and with --probe the time of its conversion; the time of planning counts as it does there."""
    from ..api.convert import plan

    if not options.probe:
        if options.ranks:
            raise InputError(f"--ranks {options.ranks} has no effect without --probe", hint="add --probe, or omit it")
        return plan(source, options, out), None
    from ..api.probe import probe

    with timed_progress(shown, options.device) as watch:
        watch("plan", 0, 1)
        made = plan(source, options, out)
        watch("plan", 1, 1)
        begun = {name: stage.seconds for name, stage in watch.stages.items()}
        return made, probe(made, options, out, begun=begun, progress=watch)


def time_table(forecast: Forecast) -> Table:
    """One row a stage of the conversion, in its order."""
    made = table("Time", ("stage",), ("about",))
    for stage, seconds in forecast.stages.items():
        made.add_row(stage, UNKNOWN if seconds is None else duration(seconds))
    return made


def time_summary(forecast: Forecast) -> str:
    """The whole time, for which processes, and what was measured to find it."""
    probe, whole = forecast.probe, forecast.planned
    ranks = (
        f"{forecast.ranks} processes, each on a device like {forecast.device}"
        if forecast.ranks > 1
        else forecast.device
    )
    unknown = [stage for stage, seconds in forecast.stages.items() if seconds is None]
    width = (probe.of_layer / whole.of_layer) ** 0.5
    sequences = f" and {probe.samples} sequences of {probe.length} of {whole.length} tokens" if whole.samples else ""
    without = f", without {', '.join(unknown)}" if unknown else ""
    lines = [
        f"time     about {duration(forecast.seconds)} on {ranks}{without}",
        f"probe    {duration(forecast.took)} of layers {width:.2f} × as wide{sequences}; disks read from their caches",
    ]
    return "\n".join(lines)
