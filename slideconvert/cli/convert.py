"""convert and plan: the whole job, and what it would do."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    CALIBRATION,
    calibration_options,
    calibration_words,
    choose_device,
    echo_json,
    json_option,
    options,
    out_argument,
    revision_option,
    run_options,
    show,
    source_argument,
    timed_progress,
    verbosity_options,
)
from .push import Attempt, check_push, public_option
from .sources import opened, source_options
from .targets import (
    TARGETS,
    TIMES,
    expect,
    parse_target,
    take,
    target_options,
    times_options,
)

if TYPE_CHECKING:
    from ..allocate.choose import Target
    from ..recipe import Recipe

METHOD_WORDS = "magnitude|wanda|hessian|obs|alps|rtn|gptq"

recipe_option = click.option(
    "--recipe", type=click.Path(path_type=Path), help="YAML recipe; the flags here overrule it."
)
scheme_option = click.option("--scheme", metavar="int8|fp8|bf16", help="Numbers of the weights.  [default: int8]")
preset_option = click.option(
    "--preset", metavar="fast|balanced|quality", help="Time spent for accuracy.  [default: balanced]"
)
codes_option = click.option(
    "--codes", metavar="ternary|full", help="Of ternary weights (BitNet): stay so, or any code.  [default: ternary]"
)
method_option = click.option("--method", metavar=METHOD_WORDS, help="One method for all, instead of the preset's.")
recipe_options = options(
    recipe_option,
    scheme_option,
    click.option("--pattern", metavar="2_L", help="2_4 … 2_16, or 2_inf to prune nothing.  [default: 2_8]"),
    preset_option,
    method_option,
    codes_option,
    calibration_options,
    click.option("--layout", metavar="slide|dense", help="How weights are stored.  [default: slide; dense for bf16]"),
    click.option("--shard-gb", type=float, help="Largest weight file, in GB.  [default: 5]"),
)

DEFAULTS = {"scheme": "int8", "pattern": "2:8"}
PRESET = "balanced"


RECIPE_WORDS = ("scheme", "pattern", "preset", "method", "codes", "layout", "shard_gb", "calibration", *CALIBRATION)
"""The parameters that `recipe_options` gives besides the recipe."""


def full_recipe(path: Path | None, **said: Any) -> Recipe:
    """The recipe file (if any), overruled by the flags, filled up with the defaults of `convert`."""
    from ..calibrate.settings import parse_preset
    from ..recipe import Recipe, describe_choice, load_recipe, make_choice, parse_recipe

    recipe = load_recipe(path) if path else Recipe()
    calibration = calibration_words(said)
    words: dict[str, Any] = {word: str(value) for word, value in said.items() if value is not None}
    flags = parse_recipe({**words, "calibration": calibration}, "flags")
    choice = make_choice(**{**DEFAULTS, **describe_choice(recipe.choice), **describe_choice(flags.choice)})
    schemes = [choice.scheme, *(rule.choice.scheme for rule in recipe.rules)]
    quantizes = any(scheme.quantized for scheme in schemes if scheme)
    return replace(
        recipe,
        choice=choice,
        preset=flags.preset or recipe.preset or (None if choice.method else parse_preset(PRESET)),
        calibration=replace(recipe.calibration, **{word: getattr(flags.calibration, word) for word in calibration}),
        layout=flags.layout or recipe.layout or ("slide" if quantizes else "dense"),
        shard_bytes=flags.shard_bytes if "shard_gb" in words else recipe.shard_bytes,
    )


@click.command("convert")
@source_argument
@out_argument
@recipe_options
@target_options
@times_options
@source_options
@click.option("--push", metavar="REPO", help="Publish the result on the Hub, as `push` does; checked before the start.")
@public_option
@run_options
def convert_command(
    source: str,
    out: Path,
    recipe: Path | None,
    revision: str | None,
    **said: Any,
) -> None:
    """Prune, quantize, re-lay and verify the model SOURCE (a folder or a Hub id) into the folder OUT.

    With --target-speedup or --density the patterns are chosen first, as `allocate` does it.
    """
    from ..errors import InputError

    words, target = take(said, RECIPE_WORDS), parse_target(**take(said, TARGETS))
    if target and words["pattern"]:
        raise InputError(
            f"--pattern {words['pattern']}, and a target to choose patterns for",
            hint="leave one out; a rule in a --recipe gives some linears a pattern of their own",
        )
    if target and said["low_disk"] and not said["source_cache"]:
        raise InputError(
            "--low-disk with a target: the weights are measured before OUT is begun",
            hint="say with --source-cache where shards may lie, or allocate first and convert with its recipe",
        )
    carry_out(source, out, full_recipe(recipe, **words), revision, target=target, **said)


@click.command("plan")
@source_argument
@recipe_options
@times_options
@revision_option
@json_option
@verbosity_options
def plan_command(
    source: str,
    recipe: Path | None,
    revision: str | None,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **words: Any,
) -> None:
    """Show what `convert` with the same words would do to SOURCE. Reads shapes only, writes nothing.

    SOURCE may be a folder with nothing but config.json. Of a Hub id no weights are fetched. With --gpu or --speed-table
    also how fast the linears should become.
    """
    from ..plan import make_plan
    from ..sketch import survey
    from .choices import expected_json, expected_summary
    from .machine import plan_json
    from .tables import plan_summary, plan_table

    times = take(words, TIMES)
    snapshot, known = survey(source, revision=revision)
    made = make_plan(snapshot, full_recipe(recipe, **words), known)
    expected = expect(made.linears, **times)
    if as_json:
        echo_json({**plan_json(made), **({"expected": expected_json(*expected)} if expected else {})})
    else:
        show(plan_table(made, every_linear=verbose))
        show(plan_summary(made))
        if expected:
            show(expected_summary(*expected))


def carry_out(
    source: str,
    out: Path,
    recipe: Recipe,
    revision: str | None,
    *,
    device: str,
    keep_on: str,
    batch_tokens: int | None,
    precision: str,
    offload: bool,
    resume: bool,
    text: str | None,
    windows: int,
    no_verify: bool,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    target: Target | None = None,
    source_cache: Path | None = None,
    low_disk: bool = False,
    push: str | None = None,
    public: bool = False,
) -> None:
    """Plan and run a conversion, its patterns chosen for a target if there is one, and print what came of it.

    push: the repository to publish it as.
    """
    from ..allocate.choose import choose_patterns
    from ..calibrate.run import RunSettings
    from ..checkpoint.staging import check_free
    from ..pipeline import convert
    from ..plan import make_plan
    from .choices import chosen_json, chosen_summary, chosen_table
    from .machine import result_json
    from .tables import report_summary, report_table

    check_free(out, resume=resume)  # before gigabytes are fetched
    check_push(push, public=public, no_verify=no_verify)
    settings = RunSettings(choose_device(device), keep_on, batch_tokens, offload, precision)
    where: dict[str, Any] = {"revision": revision, "source_cache": source_cache, "low_disk": low_disk}
    with (
        timed_progress(not (quiet or as_json), settings.device) as watch,
        opened(source, out, **where, progress=watch.aside) as (snapshot, known),
    ):
        made = make_plan(snapshot, recipe, known)
        started, chosen = time.monotonic(), None
        if target:
            chosen = choose_patterns(made, target, settings, watch)
            made = make_plan(snapshot, chosen.recipe, known)
        report = convert(
            made,
            out,
            settings=settings,
            resume=resume,
            verify=not no_verify,
            text=text,
            windows=windows,
            progress=watch,
        )
    seconds = time.monotonic() - started
    if not (quiet or as_json):
        if verbose:
            show(report_table(report))
        if chosen:
            show(chosen_table(chosen, every_error=verbose))
            show(chosen_summary(chosen))
        show(report_summary(report, out, seconds, watch.stages, known.shelf.fetched))
    attempt = Attempt.make(out, push, public=public, shown=not (quiet or as_json)) if push else None
    if as_json:
        result = {**result_json(report, out, seconds, watch), "fetched_bytes": known.shelf.fetched}
        allocation = {"allocation": chosen_json(chosen)} if chosen else {}
        published = {"pushed": attempt.to_json()} if attempt else {}
        echo_json({**result, **allocation, **published})
    if attempt and attempt.error:
        raise attempt.error
