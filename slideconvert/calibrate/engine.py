"""Compress a model layer after layer, each with what its linears see behind the layers already compressed.

Per layer, for each input group in order of data flow: run all tokens up to the input that its linears share, collect
statistics, solve, put the result into the layer, go on. A second lane runs through the dense model where a
method wants to know how far the first has moved, or training needs its outputs. One layer (two with the dense lane)
and a handful of K × K matrices are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.reader import TORCH_DTYPES
from ..core.patterns import BlockPattern, Pattern
from ..core.precision import full_precision
from ..core.quantize import Weight
from ..core.schemes import Scheme
from ..core.weights import floats, take_rows
from ..errors import InputError, SlideConvertError
from ..models.decoder import Decoder
from ..permute.fold import find_permutation, fold, in_order
from ..permute.permutations import Permutations, permute_weight
from ..permute.search import query_columns
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..progress import Progress, silent
from ..prune import METHODS, Problem
from ..prune.direct import compress_directly
from ..prune.statistics import Statistics
from ..recover.block import recover_block
from ..recover.trainable import Compressed
from ..recover.training import Curve, Schedule
from .stream import Runs, Stream


@dataclass
class LayerResult:
    """One layer's linears after compression, by submodule; those that are kept are not in it.

    weights: as stored, ternary ones as codes whatever their scheme. errors: relative error of a linear's output on the
    calibration tokens, of calibrated methods; on the inputs for which it was solved.
    notes: anything degraded or unusual, in words. permutations: how channels were permuted;
    weights and errors are those of the permuted layer. curve: of block recovery, if there was any.
    """

    weights: dict[str, Weight] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    permutations: Permutations = field(default_factory=dict)
    curve: Curve | None = None
    end: Curve | None = None


Done = Callable[[int], LayerResult | None]
"""What an earlier run made of a layer; None if it is still to be compressed."""


def compress_layers(
    plan: Plan,
    tokens: Tensor,
    runs: Runs,
    *,
    recovery: Schedule | None = None,
    done: Done = lambda _: None,
    progress: Progress = silent,
) -> Iterator[tuple[int, LayerResult]]:
    """tokens [windows, length] -> (layer, its result) for all layers in order, those that are done included."""
    decoder = Decoder(plan.source, runs.device, runs.dtype)
    decoder.record_passed(tokens.shape[1])
    layers: dict[int, dict[str, LinearPlan]] = {}
    for linear in plan.linears:
        layers.setdefault(linear.linear.layer, {})[linear.linear.submodule] = linear
    asymmetric = any(METHODS[linear.method].asymmetric for linear in plan.linears if linear.method)
    stream = Stream(decoder, tokens, runs, dense=asymmetric or recovery is not None)
    progress("calibrate", 0, len(layers))
    for number, plans in sorted(layers.items()):
        stream.enter(number)
        result = done(number)
        if result is None:
            result = LayerResult()
            grams: dict[str, Tensor] = {}
            for stage, submodules in enumerate(decoder.architecture.input_groups):
                gram = compress_stage(stream, stage, {submodule: plans[submodule] for submodule in submodules}, result)
                if gram is not None and recovery:
                    grams |= dict.fromkeys(submodules, gram)
            if recovery and result.weights:
                recover(stream, plans, result, grams, recovery)
        else:
            fold(stream.layer.module, result.permutations, decoder.free)
            put(stream, result.weights)
        progress("calibrate", number + 1, len(layers))
        yield number, result
        if number < max(layers):  # nobody waits behind the last
            stream.leave()


def compress_stage(stream: Stream, stage: int, plans: dict[str, LinearPlan], result: LayerResult) -> Tensor | None:
    """Compress the linears that share one input, those with the same choices as one matrix, and put them in place.

    Returns the Gram matrix of that input, None if nobody asked for it.
    """
    statistics = None
    together: dict[tuple[str, Pattern, Scheme, str], list[str]] = {}
    for submodule, plan in plans.items():
        if plan.kept:
            continue
        if plan.method and METHODS[plan.method].calibrated:
            # Which groups go is decided for each linear by itself.
            alone = "" if plan.pattern.rows_independent else submodule
            together.setdefault((plan.method, plan.pattern, plan.scheme, alone), []).append(submodule)
        else:
            source = plan.stored.read(stream.decoder.source).to(str(stream.runs.device))
            latent = _latent(plan, stream, result) if plan.method else None
            result.weights[submodule] = compress_directly(
                source, plan.method, plan.pattern, plan.scheme.code_scheme, latent
            )[1]
    if together:
        diagonal = all(METHODS[method].diagonal for method, *_ in together)
        statistics = stream.statistics(stage, diagonal=diagonal)
        for part, channels in stream.decoder.free.items():
            if channels.consumer in plans and plans[channels.consumer].permuted:
                statistics = _permute(part, plans[channels.consumer], stage, stream, statistics, result)
        for members in together.values():
            _solve([plans[submodule] for submodule in members], stream, statistics, result)
    put(stream, {submodule: result.weights[submodule] for submodule in plans if submodule in result.weights})
    return statistics.judging if statistics else None


def _permute(
    part: str, plan: LinearPlan, stage: int, stream: Stream, statistics: Statistics, result: LayerResult
) -> Statistics:
    """Order the channels that a linear reads, in the layer and in what is solved of it; the statistics likewise."""
    free, channels = stream.decoder.free, stream.decoder.free[part]
    assert isinstance(plan.pattern, BlockPattern)
    weight = stream.layer.linear(plan.linear.submodule).weight.data
    order = find_permutation(channels, weight, statistics, plan.pattern)
    result.permutations[part] = order
    fold(stream.layer.module, {part: order}, free)
    for producer in channels.producers:
        made = result.weights[producer.submodule]
        result.weights[producer.submodule] = permute_weight(producer.submodule, made, {part: order}, free)
    read = query_columns(order, channels.readers)
    stream.lane.reorder(stage, read)
    return in_order(statistics, read)


def put(stream: Stream, weights: dict[str, Weight]) -> None:
    """Weights by submodule into the layer that is being compressed."""
    for submodule, weight in weights.items():
        stream.layer.set_weight(submodule, floats(weight).to(stream.runs.device))


def _latent(plan: LinearPlan, stream: Stream, result: LayerResult) -> Tensor | None:
    """A linear's latent, if it stays ternary, as they stand in the layer that is being compressed."""
    return plan.latent_weights(stream.decoder.source, result.permutations, str(stream.runs.device))


def _solve(plans: list[LinearPlan], stream: Stream, statistics: Statistics, result: LayerResult) -> None:
    """Linears with the same input and the same choices, as one matrix: their rows do not know of each other."""
    plan, submodules = plans[0], [plan.linear.submodule for plan in plans]
    weights = [stream.layer.linear(submodule).weight.data for submodule in submodules]
    known = [own for own in (_latent(plan, stream, result) for plan in plans) if own is not None]
    latent = torch.cat(known) if known else None
    solve = METHODS[plan.method].solve
    assert solve is not None
    problem = Problem(torch.cat(weights), statistics, plan.pattern, plan.scheme.code_scheme, latent)
    try:
        with full_precision():
            solved = solve(problem)
    except ArithmeticError as error:
        raise SlideConvertError(f"{plan.linear.name}: {error}", hint="use more calibration samples") from error
    gram, row = statistics.judging, 0
    for own, submodule, weight in zip(plans, submodules, weights, strict=True):
        rows = slice(row, row + len(weight))
        row = rows.stop
        made = take_rows(solved.weight, rows)
        if isinstance(made, Tensor):
            made = made.to(TORCH_DTYPES[own.outputs[0].dtype] if own.outputs else torch.bfloat16)
        if not bool(floats(made).isfinite().all()):
            raise InputError(
                f"{own.linear.name}: what {own.method} made of it is not finite",
                hint="weights and inputs of this linear are too large for float32: keep it (rule with keep: true)",
            )
        result.weights[submodule] = made
        result.notes[submodule] = solved.notes
        result.errors[submodule] = output_error(weight, floats(made), gram)


def output_error(before: Tensor, after: Tensor, gram: Tensor) -> float:
    """Relative error of a linear's output: root of tr(D H Dᵀ) / tr(W H Wᵀ), D = after - before, with six digits."""
    change = after - before
    loss = float((change @ gram * change).sum(dtype=torch.float64))
    whole = float((before @ gram * before).sum(dtype=torch.float64))
    return float(f"{(max(loss, 0.0) / whole) ** 0.5:.6g}") if whole > 0 else 0.0


def recover(
    stream: Stream,
    plans: dict[str, LinearPlan],
    result: LayerResult,
    grams: dict[str, Tensor],
    schedule: Schedule,
) -> None:
    """Train the layer's survivors against the dense lane; layer and errors are then those of what came of it.

    grams: of the inputs, by submodule, as the linears were solved: training moves the inputs within the layer as well.
    """
    dense = stream.dense
    assert dense is not None
    dense.leave()
    latent = {submodule: _latent(plans[submodule], stream, result) for submodule in result.weights}
    result.weights, result.curve = recover_block(
        stream.layer,
        Compressed(result.weights, latent, {submodule for submodule, plan in plans.items() if plan.zeros_stay}),
        stream.lane.hidden.windows,
        dense.hidden.windows,
        stream.fitted,
        stream.held,
        schedule,
    )
    stream.lane.enter(stream.decoder.layer(stream.number))
    fold(stream.layer.module, result.permutations, stream.decoder.free)
    put(stream, result.weights)
    for submodule in result.errors:
        before = permute_weight(
            submodule, dense.layer.linear(submodule).weight.data, result.permutations, stream.decoder.free
        )
        assert isinstance(before, Tensor)
        result.errors[submodule] = output_error(before, stream.layer.linear(submodule).weight.data, grams[submodule])
