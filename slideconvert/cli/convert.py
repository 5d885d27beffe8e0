"""convert and plan: the whole job, and what it would do."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from .targets import TARGETS, TIMES, expect, parse_target, take, target_options, times_options

if TYPE_CHECKING:
    from ..allocate.choose import Target
    from ..plan.linear_config import LinearConfig
    from ..plan.recipe import Recipe

METHOD_WORDS = "magnitude|wanda|hessian|obs|alps|gqsa|saliency|rtn|gptq"

recipe_option = click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="YAML file, or the name of a bundled recipe, such as int8-2of8; the flags here overrule it.",
)
scheme_option = click.option(
    "--scheme",
    metavar="int8|fp8|w4a16|w4a8|w8a16|bf16",
    help="Numbers of the weights.  [default: int8; w4a16 where whole groups go]",
)
group_options = options(
    click.option("--bits", metavar="4|8", help="Weight-only schemes by their bits: w4a16, w8a16."),
    click.option(
        "--group-size", type=int, help="Weights that share a scale, and go together.  [default: 16; 128 without gqsa]"
    ),
    click.option("--symmetric/--asymmetric", default=None, help="Of w4a16 …: without zero points.  [default: with]"),
)
sparsity_options = options(
    click.option("--sparsity", type=float, metavar="X", help="Share of groups that go (gqsa).  [default: 0.5]"),
    click.option("--row-cap", type=float, metavar="X", help="No row keeps more than X times the mean (gqsa)."),
)
epochs_options = options(
    click.option("--block-epochs", type=click.IntRange(0), help="Training block by block, instead of the preset's."),
    click.option("--end-epochs", type=click.IntRange(0), help="Training end to end, instead of the preset's."),
)
preset_option = click.option(
    "--preset", metavar="fast|balanced|quality|paper", help="Time spent for accuracy.  [default: balanced]"
)
codes_option = click.option(
    "--codes", metavar="ternary|full", help="Of ternary weights (BitNet): stay so, or any code.  [default: ternary]"
)
method_option = click.option("--method", metavar=METHOD_WORDS, help="One method for all, instead of the preset's.")
recipe_options = options(
    recipe_option,
    scheme_option,
    group_options,
    click.option("--pattern", metavar="2_L", help="2_4 … 2_16, or 2_inf to prune nothing.  [default: 2_8]"),
    sparsity_options,
    preset_option,
    epochs_options,
    method_option,
    codes_option,
    calibration_options,
    click.option(
        "--layout", metavar="slide|gqs|dense", help="How weights are stored.  [default: what their kernels read]"
    ),
    click.option("--shard-gb", type=float, help="Largest weight file, in GB.  [default: 5]"),
)

DEFAULTS = {"scheme": "int8", "pattern": "2:8"}
GROUP_DEFAULTS = {"scheme": "w4a16", "sparsity": 0.5}
"""The same where whole groups go."""
PRESET = "balanced"


CHOICES = ("bits", "scheme", "group_size", "symmetric", "pattern", "sparsity", "row_cap", "method", "codes")
EPOCHS = ("block_epochs", "end_epochs")
RECIPE_WORDS = (*CHOICES, "preset", *EPOCHS, "layout", "shard_gb", "calibration", *CALIBRATION)
"""The parameters that `recipe_options` gives besides the recipe."""


def full_recipe(
    path: Path | None, *, defaults: tuple[dict[str, Any], dict[str, Any]] = (DEFAULTS, GROUP_DEFAULTS), **said: Any
) -> Recipe:
    """The recipe file (if any), overruled by the flags, filled up with defaults: for 2:L patterns, and for groups."""
    from ..plan.linear_config import describe_config, parse_linear_config
    from ..plan.presets import parse_preset
    from ..plan.recipe import Recipe, load_recipe, parse_recipe

    recipe = load_recipe(path) if path else Recipe()
    calibration = calibration_words(said)
    words: dict[str, Any] = {word: str(value) for word, value in said.items() if value is not None}
    flags = parse_recipe({**words, "calibration": calibration}, "flags")
    words_chosen = {**_compatible(recipe.config, flags.config), **describe_config(flags.config)}
    groups = parse_linear_config(**words_chosen).takes_groups
    pattern = flags.config.pattern or recipe.config.pattern
    if pattern and pattern.whole_groups:
        defaults = ({}, {word: value for word, value in defaults[1].items() if word != "sparsity"})
    config = parse_linear_config(**{**defaults[groups], **words_chosen})
    named = bool(config.method) and not groups  # a method of groups comes with the preset's training
    return replace(
        recipe,
        config=config,
        preset=flags.preset or recipe.preset or (None if named else parse_preset(PRESET)),
        block_epochs=recipe.block_epochs if flags.block_epochs is None else flags.block_epochs,
        end_epochs=recipe.end_epochs if flags.end_epochs is None else flags.end_epochs,
        calibration=replace(recipe.calibration, **{word: getattr(flags.calibration, word) for word in calibration}),
        layout=flags.layout or recipe.layout or _usual_layout([config, *(rule.config for rule in recipe.rules)]),
        shard_bytes=flags.shard_bytes if "shard_gb" in words else recipe.shard_bytes,
    )


def _compatible(config: LinearConfig, flags: LinearConfig) -> dict[str, Any]:
    """The words of a recipe's config, without those that only go with the other kind of pattern than the flags'."""
    from ..plan.linear_config import describe_config
    from ..prune import METHODS

    words = describe_config(config)
    grouped = config.method is not None and METHODS[config.method].grouped
    if flags.takes_groups and not config.takes_groups:
        words.pop("pattern", None)
        if not grouped:
            words.pop("method", None)
    if flags.pattern and not flags.takes_groups:
        for word in ("sparsity", "row_cap", *(["method"] if grouped else [])):
            words.pop(word, None)
    return words


def _usual_layout(choices: Sequence[LinearConfig]) -> str:
    """The layout that kernels of the chosen schemes read."""
    slid = any(config.scheme.quantized and not config.scheme.grouped for config in choices if config.scheme)
    grouped = any(config.scheme.grouped for config in choices if config.scheme)
    if slid:
        return "slide"
    return "gqs" if grouped and any(config.takes_groups for config in choices) else "dense"


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
    from ..hub.source import open_for_planning
    from ..plan.plan import make_plan
    from .choices import expected_json, expected_summary
    from .machine import plan_json
    from .tables import plan_summary, plan_table

    times = take(words, TIMES)
    snapshot, known = open_for_planning(source, revision=revision)
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
    from ..convert.pipeline import convert
    from ..plan.plan import make_plan
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
        show(report_summary(report, out, seconds, watch.stages, known.shard_store.fetched))
    attempt = Attempt.make(out, push, public=public, shown=not (quiet or as_json)) if push else None
    if as_json:
        result = {**result_json(report, out, seconds, watch), "fetched_bytes": known.shard_store.fetched}
        allocation = {"allocation": chosen_json(chosen)} if chosen else {}
        published = {"pushed": attempt.to_json()} if attempt else {}
        echo_json({**result, **allocation, **published})
    if attempt and attempt.error:
        raise attempt.error
