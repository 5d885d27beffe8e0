"""The one place that knows the order: read -> prune -> quantize -> slide -> pack -> write, layer after layer.

Two laws: the mask is decided on the float weight where there is one (rounding makes ties, and pruning after
quantization loses more), and a pruned code means exactly zero. Several linears are read and computed at once,
while the layer before them is being hashed and written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibrate.result import LayerResult
from ..calibrate.run import END_TO_END, RunSettings, compressed_layers, trainings
from ..calibrate.tokens import calibration_tokens
from ..checkpoint.container import TensorSpec
from ..checkpoint.reader import Checkpoint
from ..checkpoint.staging import WORK, Staging, check_free
from ..checkpoint.writer import Unit, WeightWriter
from ..core.quantize import Weight
from ..core.select import apply_mask
from ..core.weights import Tally, check_finite, floats, ratio, take_rows, tally, values
from ..core.workers import in_order
from ..errors import HubError, InputError, OutputError
from ..kernels.planes import row_blocks
from ..permute.permutations import (
    Permutations,
    compose_all,
    parse_permutations,
    permute_vector,
    permute_weight,
    read_permutations,
    vectors_beside,
)
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..progress import Progress, silent
from ..prune import METHODS
from ..prune.direct import compress_directly
from ..report import LayerReport, Report, Training, totals
from .disk_space import check_disk_space
from .finish import Measurement, finish


def convert(
    plan: Plan,
    out: Path,
    *,
    settings: RunSettings | None = None,
    resume: bool = False,
    verify: bool = True,
    text: str | None = None,
    sequences: int = 160,
    progress: Progress = silent,
) -> Report:
    """Carry out a plan into folder `out` and return the report that is written there as well.

    Interrupted, the work stays in `out` and resume=True continues it. Bad weights (NaN, a broken pattern) end it
    with an InputError and nothing left behind. With verify=True the output is re-read and checked against the
    source before it is published: VerificationError leaves it unpublished. With a text (as `read_documents` takes
    it) the perplexity of source and output on its first `sequences` sequences goes into the reports.
    """
    settings = settings or RunSettings()
    device = settings.device
    check_disk_space(plan, out)
    check_free(out, resume=resume)
    tokens = calibration_tokens(plan.recipe.calibration, plan.source) if plan.calibrated else None
    staging = Staging(out, job_state(plan, settings, tokens), resume=resume)
    try:
        _check_tied(plan)
        writer = WeightWriter(staging.path, list(plan.shards))
        try:
            _write_all(plan, tokens, writer, settings, progress)
        finally:
            writer.close()
    except (OutputError, HubError):
        raise  # what is written stays: with more room, or when the Hub is there again, --resume goes on
    except InputError:
        if not resume:  # hours of work may lie there already
            staging.discard()
        raise
    layers = [LayerReport.from_dict(layer) for note in writer.notes for layer in note["layers"]]
    trained = [Training.from_dict(part) for note in writer.notes for part in note["training"]]
    permutations = compose_all(read_permutations(plan.source), _permutations(writer))
    record = plan.record
    report = Report(
        source=record.source["id"],
        revision=record.source["revision"],
        model_type=plan.source.config["model_type"],
        layout=plan.layout,
        recipe=record.recipe,
        layers=tuple(layers),
        totals=totals(layers, plan.bytes_before, plan.bytes_after),
        notes=plan.notes,
        training=tuple(sorted(dict.fromkeys(trained), key=lambda part: part.part == END_TO_END)),
    )
    measured = Measurement(text, sequences) if text else None
    report = finish(
        plan,
        staging.path,
        writer.digests,
        permutations,
        report,
        verify=verify,
        device=device,
        measurement=measured,
        progress=progress,
    )
    staging.publish()
    return report


def job_state(plan: Plan, settings: RunSettings, tokens: Tensor | None) -> dict[str, object]:
    """What must be the same for a resumed run to continue this one."""
    files = {path.name: plan.source.shard_store.identity(path) for path in plan.source.shards}
    return {
        "source": str(plan.source.path.resolve()),
        "revision": plan.snapshot.revision,
        "source_files": files,
        "recipe": plan.recipe.describe(),
        **({} if tokens is None else _calibration_state(tokens, settings)),
        "layout": plan.layout,
        "shard_bytes": plan.recipe.shard_bytes,
    }


def _calibration_state(tokens: Tensor, settings: RunSettings) -> dict[str, object]:
    """The tokens themselves, and what decides the order in which numbers are added."""
    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    threads = torch.get_num_threads() if settings.device == "cpu" else None
    return {
        "calibration_tokens": digest,
        "device": settings.device,
        "batch_tokens": settings.batch_tokens,
        "threads": threads,
        "dtype": str(settings.dtype),
    }


def convert_linear(
    plan: LinearPlan,
    source: Weight,
    solved: LayerResult | None = None,
    latent: Tensor | None = None,
) -> tuple[dict[str, Tensor], LayerReport]:
    """One linear, from its source weight to the tensors that are stored, and what was done to it.

    solved: what calibration made of its layer; without it the linear is pruned and rounded here. latent: what a
    ternary source weight was rounded from, where that decides.

    Rows do not know of each other, so they are taken through all steps a block at a time: what lies between the
    steps never leaves the cache. Groups are chosen and stored for all rows together.
    """
    name = plan.linear.name
    check_finite(source, name)
    made = solved.weights.get(plan.linear.submodule) if solved else None
    if not (plan.method and METHODS[plan.method].prunes):
        plan.pattern.check(values(source), name)
    blocks = [
        _convert_rows(
            plan,
            take_rows(source, rows),
            None if made is None else take_rows(made, rows),
            None if latent is None else latent[rows],
        )
        for rows in ([slice(None)] if plan.whole else row_blocks(values(source)))
    ]
    tensors = {part: torch.cat([block[part] for block, _ in blocks]) for part in blocks[0][0]}
    total = sum((measured for _, measured in blocks), Tally())
    report = LayerReport(
        name=name,
        layer=plan.linear.layer,
        kind=plan.linear.kind,
        shape=plan.stored.shape,
        scheme=plan.scheme.name,
        pattern=str(plan.pattern),
        method=plan.method,
        kept=plan.kept,
        zeros=plan.weights - total.nonzeros[2],
        pruned=total.nonzeros[0] - total.nonzeros[1],
        error=ratio(total.loss, total.energy),
        prune_error=ratio(total.prune_loss, total.energy),
        bytes_before=plan.stored.bytes,
        bytes_after=sum(spec.bytes for spec in plan.outputs),
        slid_columns=plan.slid_columns,
        output_error=solved.errors.get(plan.linear.submodule) if solved else None,
        notes=solved.notes.get(plan.linear.submodule, ()) if solved else (),
        legal_groups=plan.pattern.legal_blocks(values(source)) if plan.stored.scheme.ternary else None,
    )
    return tensors, report


def _convert_rows(
    plan: LinearPlan, source: Weight, solved: Weight | None, latent: Tensor | None
) -> tuple[dict[str, Tensor], Tally]:
    """Some rows of a linear: prune, quantize, slide, pack; and what that cost. solved: pruned and quantized already."""
    if solved is None:
        pruned, weight = compress_directly(source, plan.method, plan.pattern, plan.scheme, latent)
    else:
        survivors = apply_mask(floats(source), floats(solved) != 0)
        pruned, weight = survivors, plan.scheme.store(solved)
    tensors = {} if plan.kept else plan.format.encode(plan.linear.name, weight, plan.pattern)
    return tensors, tally(source, pruned, weight)


def _write_all(
    plan: Plan, tokens: Tensor | None, writer: WeightWriter, settings: RunSettings, progress: Progress
) -> None:
    by_layer: dict[int, list[LinearPlan]] = {}
    for linear in plan.linears:
        by_layer.setdefault(linear.linear.layer, []).append(linear)
    remaining = writer.remaining
    todo = [linear for unit in remaining for linear in by_layer.get(_layer(plan, unit), [])]
    made = (
        _direct(plan, todo, settings, progress)
        if tokens is None
        else _calibrated(plan, tokens, todo, settings, writer.folder / WORK, progress)
    )
    with closing(made), ThreadPoolExecutor(1) as writes:
        writing: Future[None] | None = None
        for unit in remaining:
            tensors: dict[str, Tensor] = {}
            note: dict[str, Any] = {"layers": [], "training": []}
            solved: LayerResult | None = None
            for _ in by_layer.get(_layer(plan, unit), []):
                stored, report, solved = next(made)
                tensors |= stored
                note["layers"].append(vars(report))
            if solved:
                note["training"] = [vars(part) for part in trainings(_layer(plan, unit), solved)]
                note["orders"] = {part: order.tolist() for part, order in solved.permutations.items()}
            if writing:
                writing.result()
            writing = writes.submit(writer.write, unit, partial(_contents, plan.source, tensors), note)
        if writing:
            writing.result()


Made = Generator[tuple[dict[str, Tensor], LayerReport, LayerResult | None], None, None]
"""Linears in order, as they are stored, each with its report and what calibration made of its layer."""


def _direct(plan: Plan, todo: list[LinearPlan], settings: RunSettings, progress: Progress) -> Made:
    """Linears by their weights alone, several at once."""
    done = plan.weights - sum(linear.weights for linear in todo)
    progress("convert", done, plan.weights)
    with closing(in_order(partial(_read_and_convert, plan, settings.device), todo, settings.device)) as made:
        for linear, result in zip(todo, made, strict=True):
            done += linear.weights
            progress("convert", done, plan.weights)
            yield *result, None


def _calibrated(
    plan: Plan, tokens: Tensor, todo: list[LinearPlan], settings: RunSettings, folder: Path, progress: Progress
) -> Made:
    """Linears by what they are given when text goes through the model, layer after layer."""
    wanted: dict[int, list[LinearPlan]] = {}
    for linear in todo:
        wanted.setdefault(linear.linear.layer, []).append(linear)
    if not wanted:
        return
    for number, result in enumerate(compressed_layers(plan, tokens, settings, folder, progress)):
        for linear in wanted.get(number, []):
            yield *_read_and_convert(plan, "cpu", linear, result), result


def _read_and_convert(
    plan: Plan, device: str, linear: LinearPlan, solved: LayerResult | None = None
) -> tuple[dict[str, Tensor], LayerReport]:
    submodule, source = linear.linear.submodule, linear.stored.read(plan.source).to(device)
    latent = linear.latent_weights(plan.source, {}, device) if linear.method and not solved else None
    tensors: dict[str, Tensor] = {}
    if solved and submodule in solved.weights:
        free = plan.architecture.free_channels(plan.source.config)
        solved = replace(solved, weights={submodule: solved.weights[submodule].to(device)})
        source = permute_weight(submodule, source, solved.permutations, free)
        prefix = linear.linear.name.removesuffix(submodule)
        for name in vectors_beside(submodule, free):
            if linear.permuted and prefix + name in plan.source.tensors:
                vector = plan.source.read(prefix + name)
                tensors[prefix + name] = permute_vector(name, vector, solved.permutations, free)
    made, report = convert_linear(linear, source, solved, latent)
    tensors |= made
    return {name: tensor.cpu() for name, tensor in tensors.items()}, report


def _contents(source: Checkpoint, made: dict[str, Tensor], spec: TensorSpec) -> Iterable[Tensor]:
    """A tensor for the writer: whole if it was made, piece by piece if it is copied from the source."""
    return [made[spec.name]] if spec.name in made else source.pieces(spec.name)


def _check_tied(plan: Plan) -> None:
    """A head stored beside the embedding it is tied to is left out only if it is the same."""
    for name in plan.dropped:
        spec, tied = plan.source.spec(name), plan.source.spec(f"{plan.architecture.embedding}.weight")
        pairs = zip(plan.source.pieces(spec.name), plan.source.pieces(tied.name), strict=False)
        if spec.shape != tied.shape or spec.dtype != tied.dtype or not all(torch.equal(a, b) for a, b in pairs):
            raise InputError(
                f"{name} differs from the embedding, but config.json ties them (tie_word_embeddings)",
                hint="set tie_word_embeddings to false if the head is meant to be its own",
            )


def _permutations(writer: WeightWriter) -> dict[int, Permutations]:
    """How channels were permuted, by layer, as it was noted with the units."""
    found = {}
    for note in writer.notes:
        if note.get("orders"):
            found[note["layers"][0]["layer"]] = parse_permutations(note["orders"], f"{writer.folder}: journal")
    return found


def _layer(plan: Plan, unit: Unit) -> int:
    layer = plan.architecture.layer_of(unit.tensors[0].name)
    return -1 if layer is None else layer
