"""The error of each pattern for each fused group: the group alone compressed, in its layer of the dense model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..calibrate.activations import Activations
from ..calibrate.input_group import compress_input_group
from ..calibrate.result import LayerResult
from ..calibrate.run import RunSettings, memory_options_named
from ..calibrate.stream import StreamOptions, Streams, embed, held_out
from ..calibrate.tokens import calibration_tokens
from ..core.patterns import ALL, Pattern
from ..errors import InputError
from ..models.architecture import Linear
from ..models.decoder import Decoder
from ..plan.linear import LinearPlan
from ..plan.plan import Plan, make_plan
from ..progress import Progress, silent
from ..prune.statistics import Statistics
from .allocation import with_allocation
from .fused import FusedGroup

Candidates = Mapping[FusedGroup, Sequence[Pattern]]
"""The patterns that are tried for each group."""
LESS_MEMORY = "lower --batch-tokens, keep hidden states elsewhere (--keep-on cpu or disk), or use fewer --samples"
"""What to do where memory runs out."""
LEAST_SEQUENCES = 3
"""One that is fitted to, one that decides (stream.held_out), one that errors are measured on."""
Measured = tuple[FusedGroup, Pattern, float]
"""A group, a pattern that was tried, its error."""


def measure_errors(
    plan: Plan, settings: RunSettings, candidates: Candidates, progress: Progress = silent
) -> list[dict[Pattern, float]]:
    """The error of each of these groups with each of its candidates, in the order of `candidates`.

    The linears of a group are pruned and rounded together, as the plan's recipe does it with that pattern, and put
    into their layer of the dense model. y and y' [hidden] are the layer's outputs for a token, before and after; the
    error is the mean of ||y' - y||² / ||y||² over the held-out calibration sequences (stream.held_out), to which
    nothing is fitted here. The next layers' norms see just this relative change of the residual stream; to first order
    they carry it on, and the changes of different groups add up as independent noise does. It is taken token by token,
    since a few tokens with massive activations (arXiv 2402.17762) would drown the others in a ratio of means. For
    2:inf it is what rounding costs. What training and permutations (preset quality) regain is not in it.

    InputError for calibration text as in a conversion, for inputs that are not finite, and if the memory of the device
    does not suffice, naming what to lower. Hidden states kept on disk lie in the folder for temporary files.
    """
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    if len(tokens) < LEAST_SEQUENCES:
        raise InputError(
            f"{len(tokens)} calibration sequences: errors are measured with {LEAST_SEQUENCES} at least",
            hint="take more --samples",
        )
    errors: dict[FusedGroup, dict[Pattern, float]] = {group: {} for group in candidates}
    total = sum(len(tried) for tried in candidates.values())
    progress("allocate", 0, total)
    with (
        tempfile.TemporaryDirectory(prefix="slideconvert-") as folder,
        memory_options_named(settings.device, LESS_MEMORY, InputError),
    ):
        measured = _measured(plan, tokens, settings.stream_options(Path(folder)), candidates)
        for done, (group, pattern, error) in enumerate(measured, 1):
            errors[group][pattern] = error
            progress("allocate", done, total)
    return list(errors.values())


class _DenseStreams(Streams):
    """Streams whose layers are dense whenever statistics are collected, so that each is collected once."""

    def __init__(self, decoder: Decoder, tokens: Tensor, options: StreamOptions) -> None:
        super().__init__(decoder, tokens, options, dense=False)
        self._seen: dict[tuple[int, bool], Statistics] = {}

    def enter(self, number: int) -> None:
        super().enter(number)
        self._seen.clear()

    def statistics(self, group: int, *, diagonal: bool = False) -> Statistics:
        if (group, diagonal) not in self._seen:
            self._seen[group, diagonal] = super().statistics(group, diagonal=diagonal)
        return self._seen[group, diagonal]


def _measured(plan: Plan, tokens: Tensor, options: StreamOptions, candidates: Candidates) -> Iterator[Measured]:
    """Each candidate of each group with its error, layer after layer."""
    plans = _plans(plan, candidates)
    decoder = Decoder(plan.source, options.device, options.dtype)
    decoder.record_passed(tokens.shape[1])
    fitted, rest = held_out(len(tokens))
    streams = _DenseStreams(decoder, tokens[fitted], options)
    inputs = embed(decoder, [tokens[rest]], options, "unseen-1")
    for number in range(max(group.layer for group in candidates) + 1):
        streams.enter(number)
        outputs = options.store(f"unseen-{number % 2}")
        for hidden in inputs:
            outputs.append(streams.layer.run(hidden))
        for group in (group for group in candidates if group.layer == number):
            for pattern in candidates[group]:
                chosen = {linear.submodule: plans[pattern][linear] for linear in group.linears}
                yield group, pattern, _error(streams, chosen, inputs, outputs)
        streams.leave()
        inputs = outputs


def _plans(plan: Plan, candidates: Candidates) -> dict[Pattern, dict[Linear, LinearPlan]]:
    """By pattern what the recipe makes of all linears, those groups having it for which it is tried."""
    linears = [linear.linear for linear in plan.linears]
    found: dict[Pattern, dict[Linear, LinearPlan]] = {}
    for pattern in ALL:
        chosen = {group: pattern for group, tried in candidates.items() if pattern in tried}
        if chosen:
            recipe = with_allocation(plan.recipe, chosen, linears)
            found[pattern] = {own.linear: own for own in make_plan(plan.snapshot, recipe, plan.source).linears}
    return found


def _error(streams: Streams, plans: dict[str, LinearPlan], inputs: Activations, outputs: Activations) -> float:
    """The error of the layer with these linears, by submodule, compressed as planned; it is dense again afterwards.

    inputs, outputs: of the dense layer, on the sequences that are measured on.
    """
    dense = {submodule: streams.layer.linear(submodule).weight.data for submodule in plans}
    compress_input_group(streams, next(iter(plans.values())).linear.group, plans, LayerResult())
    pairs = zip(inputs, outputs, strict=True)
    changes = torch.cat([_changes(streams.layer.run(hidden), before) for hidden, before in pairs])
    for submodule, weight in dense.items():
        streams.layer.set_weight(submodule, weight)
    return float(changes.mean())


def _changes(after: Tensor, before: Tensor) -> Tensor:
    """after, before [sequences, length, hidden] -> ||after - before||² / ||before||² by token [tokens] float64."""
    change = (after - before).square().sum(-1, dtype=torch.float64)
    return (change / before.square().sum(-1, dtype=torch.float64)).flatten()
