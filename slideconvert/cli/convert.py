"""convert and plan: a whole conversion, and what it would do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click

from ..api.options import ConvertOptions, Options, OutputOptions, PlanOptions, option
from ..launched import rank
from .common import Folder, echo_json, out_argument, show, source_argument, timed_progress
from .options import Display, command

if TYPE_CHECKING:
    from ..allocate.choose import Target
    from ..plan.recipe import Recipe


@dataclass(frozen=True)
class PublishOptions(Options):
    """Publishing the result."""

    HEADING: ClassVar[str] = "Hub"

    push: str | None = option(
        "Publish the result on the Hub, as `push` does; checked before the start.", metavar="REPO"
    )
    public: bool = option("Make a new repository public; an existing one stays as it is.", default=False)


@dataclass(frozen=True)
class ConvertCommandOptions(ConvertOptions, PublishOptions):
    """Options of `convert`, and of `push` after it."""


@dataclass(frozen=True)
class PlanCommandOptions(ConvertCommandOptions, PlanOptions):
    """Options of `plan`: those of `convert`, and how to find out how long it takes."""


@command("convert", ConvertCommandOptions)
@source_argument
@out_argument
def convert_command(source: str, out: Path, options: ConvertCommandOptions, display: Display) -> None:
    """Prune, quantize, pack and verify the model SOURCE (a folder, a Hub id or a GGUF file) into the folder OUT.

    \b
      slideconvert convert MODEL OUT --pattern 2_8 --calibration my.jsonl
      slideconvert convert MODEL OUT --recipe int8-2of8 --resume

    With --target-speedup or --density the patterns are chosen first, as `allocate` chooses them.
    """
    from ..api.convert import check_target
    from ..api.recipe import recipe_of

    run(source, out, recipe_of(options), options, display, check_target(options))


@command("plan", PlanCommandOptions)
@source_argument
@click.argument("out", metavar="[OUT]", required=False, type=Folder())
def plan_command(source: str, out: Path | None, options: PlanCommandOptions, display: Display) -> None:
    """Show what `convert` with the same words would do to SOURCE. Reads shapes only, writes nothing.

    \b
      slideconvert plan MODEL OUT --pattern 2_8 --calibration my.jsonl
      slideconvert plan MODEL OUT --preset fast --device cuda --probe
      slideconvert plan MODEL --pattern 2_4 --gpu h200 --tokens 1

    SOURCE may be a folder with nothing but config.json. No weights of a Hub id are fetched. With OUT, also check that
    folder and its disk. With --gpu or --speed-table, also show the speed-up that the linears should reach. A --device
    need not be on this machine. Errors for --target-speedup and --density are not measured, so that convert may choose
    other patterns.

    With --probe, small models of the same shapes and random weights are converted in a temporary folder beside OUT, and
    deleted; --ranks tells what torchrun would gain.
    """
    from ..api.target import expected_of
    from .choices import expected_json, expected_summary
    from .planned import plan_json, plan_summary, plan_table
    from .push import check_push
    from .timed import planned, time_summary, time_table

    check_push(options.push, public=options.public, verify=options.verify)
    made, forecast = planned(source, out, options, shown=display.shown)
    expected = expected_of(made.linears, options)
    if display.as_json:
        said = plan_json(made, options, out)
        timed = {"time": forecast.to_json()} if forecast else {}
        echo_json({**said, **timed, **({"expected": expected_json(expected)} if expected else {})})
    elif display.shown:
        show(plan_table(made, every_linear=display.verbose))
        show(plan_summary(made, options, out))
        if forecast:
            show(time_table(forecast))
            show(time_summary(forecast))
        if expected:
            show(expected_summary(expected))


def run(
    source: str, out: Path, recipe: Recipe, options: OutputOptions, display: Display, target: Target | None = None
) -> None:
    """Carry out a conversion, its patterns chosen for a target if there is one, publish it if asked, and print it.

    Of several ranks, the first alone publishes and prints.
    """
    from ..api.convert import convert_source
    from ..api.options import DeviceOptions
    from .choices import chosen_json, chosen_summary, chosen_table
    from .machine import result_json
    from .push import Attempt, check_push
    from .tables import report_summary, report_table

    assert isinstance(options, DeviceOptions)
    publish = options if isinstance(options, PublishOptions) else PublishOptions()
    leads = rank() == 0
    if leads:
        check_push(publish.push, public=publish.public, verify=options.verify)
    with timed_progress(display.shown and leads, options.device) as watch:
        done = convert_source(source, out, recipe, options, watch, target)
    if not leads:
        return
    if display.shown:
        if display.verbose:
            show(report_table(done.report))
        if done.chosen:
            show(chosen_table(done.chosen, every_error=display.verbose))
            show(chosen_summary(done.chosen))
        show(report_summary(done, out, watch))
    attempt = Attempt.make(out, publish.push, public=publish.public, shown=display.shown) if publish.push else None
    if display.as_json:
        result = result_json(done, out, watch)
        allocation = {"allocation": chosen_json(done.chosen)} if done.chosen else {}
        published = {"pushed": attempt.to_json()} if attempt else {}
        echo_json({**result, **allocation, **published})
    if attempt and attempt.error:
        raise attempt.error
