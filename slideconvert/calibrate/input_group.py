"""Compress the linears of a layer that share an input: collect statistics, permute, solve, update the layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..checkpoint.reader import TORCH_DTYPES
from ..core.choices import MAGNITUDE
from ..core.patterns import Pattern
from ..core.precision import full_precision
from ..core.quantize import Weight
from ..core.schemes import Scheme
from ..core.weights import floats, scaled, take_rows, unit_of
from ..errors import InputError, SlideConvertError
from ..permute.fold import find_permutation, fold, in_order
from ..permute.layer import query_columns
from ..permute.permutations import permute_weight
from ..plan.linear import LinearPlan
from ..prune import METHODS, Method, Problem, Solved
from ..prune.direct import compress_directly
from ..prune.statistics import Statistics
from .activation_error import NOTE, TOO_MUCH, activation_error
from .result import LayerResult
from .stream import Streams

BLIND = (
    "its inputs are zero for every fitted token of the calibration text: magnitude chose the weights, and they were "
    "rounded to nearest"
)


def compress_input_group(streams: Streams, group: int, plans: dict[str, LinearPlan], result: LayerResult) -> None:
    """Compress the linears of an input group, linears with equal plans as one matrix. plans: by submodule."""
    together: dict[tuple[str, Pattern, Scheme, str], list[str]] = {}
    for submodule, plan in plans.items():
        if plan.kept:
            continue
        if plan.method and METHODS[plan.method].calibrated:
            # If the rows of a pattern depend on each other, each linear is solved alone.
            alone = "" if plan.pattern.rows_independent else submodule
            together.setdefault((plan.method, plan.pattern, plan.scheme, alone), []).append(submodule)
        else:
            source = plan.stored.read(streams.decoder.source).to(str(streams.options.device))
            latent = latent_weights(plan, streams, result) if plan.method else None
            scheme = plan.scheme.code_scheme
            result.weights[submodule] = compress_directly(source, plan.method, plan.pattern, scheme, latent)[1]
    if together:
        diagonal = all(METHODS[method].diagonal for method, *_ in together)
        statistics = streams.statistics(group, diagonal=diagonal)
        for submodule, plan in plans.items():
            if not plan.kept:
                weight = streams.layer.linear(submodule).weight.data
                result.activation_errors[submodule] = activation_error(streams.sample, weight, plan.scheme)
        for part, channels in streams.decoder.free.items():
            if channels.consumer in plans and plans[channels.consumer].permuted:
                statistics = _permute(part, plans[channels.consumer], streams, statistics, result)
        for members in together.values():
            _solve([plans[submodule] for submodule in members], streams, statistics, result)
    put(streams, {submodule: result.weights[submodule] for submodule in plans if submodule in result.weights})


def put(streams: Streams, weights: dict[str, Weight]) -> None:
    """Put weights, by submodule, into the current layer of the compressed stream."""
    for submodule, weight in weights.items():
        streams.layer.set_weight(submodule, floats(weight).to(streams.options.device))


def latent_weights(plan: LinearPlan, streams: Streams, result: LayerResult) -> Tensor | None:
    """The latent weights of a linear that stays ternary, in the permuted channel order; None for other linears."""
    return plan.latent_weights(streams.decoder.source, result.permutations, str(streams.options.device))


def _permute(part: str, plan: LinearPlan, streams: Streams, statistics: Statistics, result: LayerResult) -> Statistics:
    """Permute the input channels of a linear, in the layer, its results and the statistics."""
    free, channels = streams.decoder.free, streams.decoder.free[part]
    weight = streams.layer.linear(plan.linear.submodule).weight.data
    order = find_permutation(channels, weight, statistics, plan.pattern)
    result.permutations[part] = order
    fold(streams.layer.module, {part: order}, free)
    for producer in channels.producers:
        made = result.weights[producer.submodule]
        result.weights[producer.submodule] = permute_weight(producer.submodule, made, {part: order}, free)
    read = query_columns(order, channels.readers)
    streams.compressed.reorder(plan.linear.group, read)
    return in_order(statistics, read)


def _solve(plans: list[LinearPlan], streams: Streams, statistics: Statistics, result: LayerResult) -> None:
    """Solve linears with the same input and equal plans as one matrix, whose rows are independent."""
    plan, submodules = plans[0], [plan.linear.submodule for plan in plans]
    weights = [streams.layer.linear(submodule).weight.data for submodule in submodules]
    known = [own for own in (latent_weights(plan, streams, result) for plan in plans) if own is not None]
    latent = torch.cat(known) if known else None
    units = [unit_of(weight) for weight in weights]
    stacked = [weight if unit == 1 else weight * unit for weight, unit in zip(weights, units, strict=True)]
    problem = Problem(torch.cat(stacked), statistics, plan.pattern, plan.scheme.code_scheme, latent)
    try:
        solved = _divided(problem, METHODS[plan.method])
    except ArithmeticError as error:
        raise SlideConvertError(f"{plan.linear.name}: {error}", hint="use more calibration samples") from error
    row = 0
    for own, submodule, weight, unit in zip(plans, submodules, weights, units, strict=True):
        rows = slice(row, row + len(weight))
        row = rows.stop
        made = take_rows(solved.weight, rows)
        made = made if unit == 1 else scaled(made, 1 / unit)
        if isinstance(made, Tensor):
            made = made.to(TORCH_DTYPES[own.outputs[0].dtype] if own.outputs else torch.bfloat16)
        if not bool(floats(made).isfinite().all()):
            raise InputError(
                f"{own.linear.name}: the result of method {own.method} is not finite",
                hint="weights or inputs of this linear are too large for float32: keep it (rule with keep: true)",
            )
        result.weights[submodule] = made
        lost = result.activation_errors[submodule] or 0.0
        result.notes[submodule] = (*solved.notes, *([NOTE] if lost > TOO_MUCH else []))


def _divided(problem: Problem[Any], method: Method) -> Solved:
    """Solve a problem, each rank some of its rows if they are independent and every rank gets some."""
    rows = len(problem.weight)
    if ranks.count() == 1 or not problem.pattern.rows_independent or rows < ranks.count():
        return _solved(problem, method)
    own, latent = ranks.own_rows(), problem.latent
    part = replace(
        problem,
        weight=problem.weight[own].contiguous(),
        latent=None if latent is None else latent[own].contiguous(),
        total=ranks.total,
    )
    ranks.gate()
    solved = _solved(part, method)
    return Solved(_of_all_rows(solved.weight, rows), solved.notes)


def _of_all_rows(own: Weight, rows: int) -> Weight:
    """A weight with so many rows, of which each rank has its own."""
    if isinstance(own, Tensor):
        return ranks.whole(own, rows)
    zero = None if own.zero is None else ranks.whole(own.zero, rows)
    return replace(own, codes=ranks.whole(own.codes, rows), scale=ranks.whole(own.scale, rows), zero=zero)


def _solved(problem: Problem[Any], method: Method) -> Solved:
    """Apply a method. Without inputs to calibrate for, magnitude chooses, and the weights are rounded to nearest."""
    if problem.statistics.blind:
        name = MAGNITUDE if method.prunes else ""
        weight = compress_directly(problem.weight, name, problem.pattern, problem.scheme, problem.latent)[1]
        return Solved(weight, (BLIND,))
    assert method.solve is not None
    with full_precision():
        return method.solve(problem)
