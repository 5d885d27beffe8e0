"""The order of a conversion, known only here: plan -> convert linears layer by layer -> write -> verify -> publish.

Several linears are read and computed concurrently, while the preceding layer is hashed and written. Without calibration
each rank (ranks/) converts weight files of its own; with it, all ranks calibrate and the first writes. The first alone
completes and publishes the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from .. import ranks
from ..calibrate.doubts import calibration_doubts
from ..calibrate.result import LayerResult
from ..calibrate.run import RunSettings, compressed_layers
from ..calibrate.smoothing import smoothed
from ..calibrate.stream import held_out
from ..calibrate.tokens import calibration_tokens
from ..checkpoint.claim import Claim, claimed
from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import Checkpoint
from ..checkpoint.staging import WORK, Staging, check_free
from ..checkpoint.writer import Shard, Unit, WeightWriter, divided, read_journals
from ..core.workers import in_order
from ..errors import CalibrationWarning, HubError, InputError, OutputError
from ..models.completeness import check_tied
from ..models.finite import check_all_finite, finite, finite_pieces
from ..permute.permutations import compose_all, read_permutations
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..progress import Progress, silent
from ..report import Report, totals
from ..smooth.scales import added, read_scales
from .disk_space import check_disk_space
from .finish import FINISH, Checks, Measuring, Weights, finish
from .journal import Noted, job_state, unit_note
from .linear import ConvertedLinear, convert_linear


def convert(
    plan: Plan,
    out: Path | Claim,
    *,
    settings: RunSettings | None = None,
    resume: bool = False,
    verify: bool = True,
    measuring: Measuring = Measuring(),
    progress: Progress = silent,
) -> Report:
    """Carry out a plan into folder `out`, and return the report, which is also written there.

    out: a folder, which is claimed for this process, or a claim that the caller holds.
    After an interruption, partial results remain in `out`, and resume=True continues from them. verify: re-read the
    output and check it against the source before publishing it. measuring: how far the output is from the source, and
    may be. CalibrationWarning for a calibration text that decides little. InputError if another
    process writes to `out`, and for invalid weights (NaN, a violated pattern), which deletes a new `out`; OutputError
    for a full disk or memory, or if `out` is removed meanwhile; HubError for failures of the Hub, and VerificationError
    for a faulty output and QualityError for one beyond its limits, which are not published.
    """
    settings = settings or RunSettings()
    checks = Checks(settings, verify, measuring)
    checks.check(plan.source.config["vocab_size"])
    with claimed(out) as claim:
        tokens, staging = _begun(plan, claim, settings, progress, resume=resume)
        checks = replace(checks, held=_held(tokens))
        doubts = _doubts(plan, tokens)
        try:
            progress("check", 0, 1)
            _check_source(plan)
            progress("check", 1, 1)
            plan = smoothed(plan, tokens, settings, staging.path / WORK, progress)
            with closing(_writer(plan, staging.path)) as writer:
                todo = {unit: _linears(plan, unit) for unit in writer.remaining}
                linears = [linear for own in todo.values() for linear in own]
                made = _converted(plan, linears, tokens, settings, staging.path / WORK, progress)
                count = progress if tokens is None else silent  # calibration reports its own progress
                whole = sum(linear.weights for unit in writer.units for linear in _linears(plan, unit))
                done = whole - sum(linear.weights for linear in linears)
                count("convert", done, whole)
                with closing(made), ThreadPoolExecutor(1) as background:
                    writing: Future[None] | None = None
                    for unit, own in todo.items():
                        converted = []
                        for linear in own:
                            converted.append(next(made))
                            done += linear.weights
                            count("convert", done, whole)
                        tensors = {name: tensor for one in converted for name, tensor in one.tensors.items()}
                        if own:  # its norms too, while its shard is still on disk (--low-disk)
                            rest = (spec.name for spec in unit.tensors if spec.name not in tensors)
                            tensors |= {name: finite(plan.source, name) for name in rest}
                        claim.check()
                        ranks.heed()
                        plan.source.check_unchanged()  # the journal lists only what was made of one state of the source
                        contents = partial(_contents, plan.source, tensors)
                        if writing:
                            writing.result()
                        writing = background.submit(writer.write, unit, contents, unit_note(converted))
                    if writing:
                        writing.result()
                    next(made, None)  # all ranks calibrate to the end, also those that write nothing
            ranks.gate()
        except (OutputError, HubError):
            raise  # files written so far remain: --resume continues with more disk space, or when the Hub answers again
        except InputError as error:
            if not resume and claim.holds:  # a resumed folder may hold hours of work, another folder is not ours
                ranks.end_all(error)
                staging.discard()
            raise
        return _completed(plan, staging, claim, doubts, checks, progress)


def _begun(
    plan: Plan, claim: Claim, settings: RunSettings, progress: Progress, *, resume: bool
) -> tuple[Tensor | None, Staging]:
    """The calibration tokens, None without calibration, and the working folder, which the first rank makes."""
    if ranks.first():
        check_free(claim.path, resume=resume)
        check_disk_space(plan, claim.path, settings)
    tokens = ranks.given(partial(_tokens, plan, progress)) if plan.calibrated else None
    with ranks.first_ahead():
        return tokens, Staging(claim.path, job_state(plan, settings, tokens), resume=resume)


def _completed(
    plan: Plan, staging: Staging, claim: Claim, doubts: list[str], checks: Checks, progress: Progress
) -> Report:
    """Complete, check and publish an output whose weight files all ranks have written; the first rank does it."""
    notes, digests = read_journals(staging.path, plan.shards)
    noted = Noted.of(notes, f"{staging.path}: journal")
    report = _report(plan, noted, (*doubts, *claim.notes))
    ranks.gate()  # all ranks have read what goes when the output is published
    if not ranks.first():
        return report
    composed = compose_all(read_permutations(plan.source), noted.permutations)
    weights = Weights(digests, noted.permutations, composed, added(read_scales(plan.source), plan.scales))
    claim.check()
    plan.source.check_unchanged()
    with ranks.alone():
        report = finish(plan, staging.path, weights, report, checks, progress)
    plan.source.check_unchanged()  # tokenizer and config too, which `finish` copies
    claim.check()
    staging.publish()
    progress(FINISH, 1, 1)
    return report


def _writer(plan: Plan, folder: Path) -> WeightWriter:
    """The writer of this rank's weight files: those of all ranks if they calibrate together, and the first writes."""
    count = ranks.count()
    alone: list[list[Shard]] = [list(plan.shards), *([] for _ in range(count - 1))]
    parts = alone if plan.calibrated else divided(plan.shards, count)
    own = ranks.number()
    beside = [shard for part in (*parts[:own], *parts[own + 1 :]) for shard in part]
    with ranks.first_ahead():
        return WeightWriter(folder, parts[own], own, beside)


def _tokens(plan: Plan, progress: Progress) -> Tensor:
    """The calibration tokens [sequences, length] int64 of a calibrated plan."""
    progress("text", 0, 1)
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    progress("text", 1, 1)
    return tokens


def _held(tokens: Tensor | None) -> Tensor | None:
    """The calibration tokens that are held out of the fit."""
    return None if tokens is None else tokens[held_out(len(tokens))[1]]


def _doubts(plan: Plan, tokens: Tensor | None) -> list[str]:
    """What speaks against the calibration text, told before the work."""
    doubts = calibration_doubts(plan, tokens) if tokens is not None and ranks.first() else []
    for doubt in doubts:
        warnings.warn(doubt, CalibrationWarning, stacklevel=3)
    return doubts


def _check_source(plan: Plan) -> None:
    """InputError for faults of the source that would show only after much work, or not at all. For all ranks, the first
    looks."""
    if not ranks.first():
        return
    check_tied(plan.source)
    read_permutations(plan.source)
    read_scales(plan.source)
    if plan.calibrated and plan.source.shard_store.disk_use is None:
        # Hours before the last layer is read; files that are fetched one by one are checked as they arrive.
        check_all_finite(plan.source, [name for name in plan.source.tensors if name not in plan.surplus])


def _linears(plan: Plan, unit: Unit) -> list[LinearPlan]:
    """The linears of the layer that a unit writes."""
    layer = plan.architecture.layer_of(unit.tensors[0].name)
    return [linear for linear in plan.linears if linear.linear.layer == layer]


def _converted(
    plan: Plan,
    linears: Sequence[LinearPlan],
    tokens: Tensor | None,
    settings: RunSettings,
    folder: Path,
    progress: Progress,
) -> Generator[ConvertedLinear, None, None]:
    """Convert linears in order, without tokens one by one, else layer by layer. folder: for finished layers."""
    if tokens is None:
        return in_order(partial(convert_linear, plan, settings.device), linears, settings.device)
    return _calibrated(plan, linears, compressed_layers(plan, tokens, settings, folder, progress))


def _calibrated(
    plan: Plan, linears: Sequence[LinearPlan], layers: Iterable[LayerResult]
) -> Generator[ConvertedLinear, None, None]:
    """Convert linears in order from the results of all layers. If the first rank has none left, no layer is calibrated;
    the others have none anyway."""
    wanted: dict[int, list[LinearPlan]] = {}
    for linear in linears:
        wanted.setdefault(linear.linear.layer, []).append(linear)
    if ranks.agreed(len(wanted)):
        for number, solved in enumerate(layers):
            for linear in wanted.get(number, []):
                yield convert_linear(plan, "cpu", linear, solved)


def _contents(source: Checkpoint, made: dict[str, Tensor], spec: TensorSpec) -> Iterable[Tensor]:
    """A tensor for the writer: in one piece if converted, in several if copied from the source."""
    return [made[spec.name]] if spec.name in made else finite_pieces(source, spec.name)


def _report(plan: Plan, noted: Noted, notes: Sequence[str]) -> Report:
    """The report of a conversion, without hashes and verdict."""
    record = plan.record
    return Report(
        source=record.source["id"],
        revision=record.source["revision"],
        model_type=plan.source.config["model_type"],
        layout=plan.layout,
        recipe=record.recipe,
        layers=noted.layers,
        totals=totals(list(noted.layers), plan.bytes_before, plan.bytes_after),
        notes=(*plan.notes, *notes),
        training=noted.training,
    )
