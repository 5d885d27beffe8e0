"""Functions for conversions: plan, convert, its stages one by one, and the choice of patterns for a target."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import ranks
from ..allocate.choose import Chosen, Target, choose_patterns, choose_unmeasured
from ..allocate.written import write_recipe
from ..checkpoint.claim import claimed
from ..checkpoint.staging import check_new_file
from ..convert import pipeline
from ..convert.earlier import check_replaceable, check_vacant, clear, finished, report_of
from ..convert.finish import Measuring
from ..errors import InputError
from ..evaluate.compare import SEQUENCES
from ..formats.registry import parse_layout
from ..hub.source import open_for_planning, resolve
from ..plan.plan import Plan, make_plan
from ..plan.recipe import Recipe
from ..progress import Progress, silent
from ..report import Report
from ..report.limits import Limits
from ..texts.named import text_of
from .ends import check_output, check_source, opened, refuse_several_ranks
from .options import (
    AllocateOptions,
    ConvertOptions,
    DeviceOptions,
    OutputOptions,
    PlanOptions,
    QuantizeOptions,
    RelayoutOptions,
    SlideOptions,
    SparsifyOptions,
)
from .recipe import quantize_recipe, recipe_of, slide_recipe, sparsify_recipe
from .settings import limits_of, refuse_unused, settings_of
from .target import target_of


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    chosen: the patterns for the target; None without one. fetched: bytes of the source's shards that were fetched
    during the conversion. already: an earlier run had finished it, and nothing was done.
    """

    report: Report
    chosen: Chosen | None
    fetched: int
    already: bool = False


def plan(source: str | Path, options: ConvertOptions = PlanOptions(), out: str | Path | None = None) -> Plan:
    """Plan what `convert` with the same options does to a source, a folder, a Hub id or a GGUF file.

    Reads shapes, writes nothing. Whatever `convert` refuses before its work, this refuses, but for a device that is not
    on this machine. out: the folder of the output, which is checked as `convert` checks it. Patterns for a target are
    those that would be best if all linears were equally sensitive: `convert` measures errors to choose.

    Returns the Plan: linears, bytes and memory. InputError for the first fault in options or source, with the number of
    others; HubError for a Hub id that cannot be fetched.

        >>> made = slideconvert.plan(model, PlanOptions(pattern="2:6", method="magnitude"))
        >>> made.bytes_after < made.bytes_before
        True
    """
    target, folder = check_target(options, planned=True), None if out is None else Path(out)
    check_output(source, folder, options)
    check_source(str(source), options)
    settings_of(options, here=False)
    earlier = finished(folder) if folder and options.resume and target is None else None
    if folder and options.overwrite and folder.exists():
        check_replaceable(folder)
    elif folder and not earlier:
        check_vacant(folder, resume=options.resume)
    snapshot, checkpoint = open_for_planning(str(source), revision=options.revision, cache=options.source_cache)
    made = make_plan(snapshot, recipe_of(options), checkpoint)
    refuse_unused(options, made, measures=target is not None)
    limits_of(options, made)
    if folder and earlier:
        report_of(folder, earlier, made)
    return made if target is None else make_plan(snapshot, choose_unmeasured(made, target), checkpoint)


def convert(
    source: str | Path,
    out: str | Path,
    options: ConvertOptions = ConvertOptions(),
    *,
    progress: Progress = silent,
) -> Report:
    """Prune, quantize, pack and verify a model, a folder, a Hub id or a GGUF file, and write it to the folder `out`.

    After an interruption, resume=True continues to the same bytes. Returns the Report, as in report.json. InputError
    for options or a source that cannot be used, HubError for a Hub id that cannot be fetched, VerificationError if the
    output has faults.

        >>> report = slideconvert.convert(model, out, ConvertOptions(scheme="int8", pattern="2:8", method="magnitude"))
        >>> f"{report.totals.zeros / report.totals.weights:.0%}"
        '25%'
    """
    return convert_source(source, Path(out), recipe_of(options), options, progress, check_target(options)).report


def sparsify(
    source: str | Path,
    out: str | Path,
    options: SparsifyOptions = SparsifyOptions(),
    *,
    progress: Progress = silent,
) -> Report:
    """Prune a model to a pattern; the weights keep their number format. Raises the errors of `convert`."""
    return convert_source(source, Path(out), sparsify_recipe(options), options, progress).report


def quantize(
    source: str | Path,
    out: str | Path,
    options: QuantizeOptions = QuantizeOptions(),
    *,
    progress: Progress = silent,
) -> Report:
    """Quantize the float weights of a model; zeros stay zeros. Raises the errors of `convert`."""
    return convert_source(source, Path(out), quantize_recipe(options), options, progress).report


def slide(
    source: str | Path,
    out: str | Path,
    options: SlideOptions = SlideOptions(),
    *,
    progress: Progress = silent,
) -> Report:
    """Pack the quantized weights of a model into 2:4 windows. Raises the errors of `convert`."""
    return convert_source(source, Path(out), slide_recipe(options), options, progress).report


def relayout(
    ckpt: str | Path,
    out: str | Path,
    layout: str,
    options: RelayoutOptions = RelayoutOptions(),
    *,
    progress: Progress = silent,
) -> Report:
    """Write the same weights of a checkpoint in another layout: slide, gqs or dense. Raises the errors of `convert`.

    >>> slideconvert.relayout(out, dense, "dense").layout
    'dense'
    """
    return convert_source(ckpt, Path(out), Recipe(layout=parse_layout(layout)), options, progress).report


def allocate(
    source: str | Path,
    recipe_out: str | Path,
    options: AllocateOptions,
    *,
    progress: Progress = silent,
) -> Chosen:
    """Choose a pattern for each group of fused linears, and write the recipe to the file `recipe_out`.

    The chosen patterns have the least summed error among those that meet the target: `target_speedup` of the linears
    over dense 8-bit ones, or `density`, the share of weights to keep (0 to 1). InputError without a target, or for a
    target that no choice of patterns meets.
    """
    target, path = target_of(options), Path(recipe_out)
    if target is None:
        raise InputError("no target", hint="--target-speedup 1.2 --gpu a100, or --density 0.75")
    check_new_file(path)
    made = make_plan(resolve(str(source), revision=options.revision, progress=progress), recipe_of(options))
    chosen = choose_patterns(made, target, settings_of(options), progress)
    write_recipe(path, chosen, made.snapshot.id)
    return chosen


def check_target(options: ConvertOptions, *, planned: bool = False) -> Target | None:
    """The target of a conversion, None without one. InputError for options that a target excludes."""
    target = target_of(options, planned=planned)
    if target and options.pattern:
        raise InputError(
            f"--pattern {options.pattern} and a target to choose patterns for",
            hint="omit one; a rule in a --recipe sets the pattern of single linears",
        )
    if target and options.low_disk and not options.source_cache:
        raise InputError(
            "--low-disk with a target: the weights are measured before OUT is begun",
            hint="give a folder for shards with --source-cache, or allocate first and convert with its recipe",
        )
    return target


def _measuring(options: OutputOptions, limits: Limits) -> Measuring:
    text = None if options.text is None else text_of(options.text)
    return Measuring(text, options.sequences or SEQUENCES, limits, options.text_column)


def convert_source(
    source: str | Path,
    out: Path,
    recipe: Recipe,
    options: OutputOptions,
    progress: Progress = silent,
    target: Target | None = None,
) -> Conversion:
    """Open a source, plan its conversion, choose patterns if there is a target, and convert it into `out`.

    options: of the job, those of its source and of computing among them. In processes that torchrun or accelerate has
    started, all of which call this, they share the conversion; the reports of ranks other than 0 have no verdict.
    """
    assert isinstance(options, DeviceOptions)
    check_output(source, out, options)
    settings, chosen = settings_of(options), None
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(settings.device))
        refuse_several_ranks(options, target)
        claim = stack.enter_context(claimed(out))
        if options.overwrite:
            check_replaceable(out)
        earlier = finished(out) if options.resume and target is None else None
        if ranks.first() and not earlier and not options.overwrite:
            check_vacant(out, resume=options.resume)  # before gigabytes are fetched
        with ranks.first_ahead():  # the others find the source in the cache
            snapshot, checkpoint = stack.enter_context(opened(str(source), out, options, progress))
        progress("plan", 0, 1)
        made = make_plan(snapshot, recipe, checkpoint)
        refuse_unused(options, made, measures=target is not None)
        limits = limits_of(options, made)
        progress("plan", 1, 1)
        if options.overwrite:
            clear(out)  # now that the plan stands
        if earlier:
            return Conversion(report_of(out, earlier, made), None, checkpoint.shard_store.fetched, already=True)
        if target:
            chosen = choose_patterns(made, target, settings, progress)
            made = make_plan(snapshot, chosen.recipe, checkpoint)
        report = pipeline.convert(
            made,
            claim,
            settings=settings,
            resume=options.resume,
            verify=options.verify,
            measuring=_measuring(options, limits),
            progress=progress,
        )
    return Conversion(report, chosen, checkpoint.shard_store.fetched)
