"""Compress a model layer by layer, each layer for the outputs of the compressed layers before it.

Several ranks have the sequences among them, and each has all layers: their results are the same on all ranks.

Per layer, for each input group in order of data flow: run all tokens up to the input that its linears share, collect
statistics, solve, and put the result into the layer. A dense stream runs in parallel if a method compares with it or
training needs its outputs. One layer (two with the dense stream) and a few K × K matrices are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from ..models.decoder import Decoder
from ..permute.fold import fold
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..progress import Progress, silent
from ..prune import METHODS
from ..recover.block import recover_block
from ..recover.options import Schedule
from ..recover.trainable import Compressed
from .input_group import compress_input_group, latent_weights, put
from .result import LayerResult
from .stream import StreamOptions, Streams

Done = Callable[[int], LayerResult | None]
"""The result of a layer that an earlier run finished, or None."""


def compress_layers(
    plan: Plan,
    tokens: Tensor,
    options: StreamOptions,
    *,
    recovery: Schedule | None = None,
    done: Done = lambda _: None,
    progress: Progress = silent,
) -> Iterator[tuple[int, LayerResult]]:
    """tokens [sequences, length] int64 -> (layer number, result) of every layer in order, including finished ones.

    tokens: those of the plan, the generated ones first; layers have the last plan.layer_generated of these.

    Raises InputError for inputs or weights that are not finite, SlideConvertError if a solver fails.
    """
    decoder = Decoder(plan.source, options.device, options.dtype)
    decoder.record_passed(tokens.shape[1])
    own, generated = tokens[plan.generated - plan.layer_generated :], plan.layer_generated
    layers: dict[int, dict[str, LinearPlan]] = {}
    for linear in plan.linears:
        layers.setdefault(linear.linear.layer, {})[linear.linear.submodule] = linear
    dense_inputs = any(METHODS[linear.method].uses_dense_inputs for linear in plan.linears if linear.method)
    streams = Streams(decoder, own, options, dense=dense_inputs or recovery is not None, generated=generated)
    progress("calibrate", 0, len(layers))
    for number, plans in sorted(layers.items()):
        streams.enter(number)
        result = done(number)
        if result is None:
            result = _compress_layer(streams, plans, recovery)
        else:
            fold(streams.layer.module, result.permutations, decoder.free)
            put(streams, result.weights)
        progress("calibrate", number + 1, len(layers))
        yield number, result
        if number < max(layers):  # nothing reads the output of the last layer
            streams.leave()


def _compress_layer(streams: Streams, plans: dict[str, LinearPlan], recovery: Schedule | None) -> LayerResult:
    """Compress and train the current layer of the streams. plans: by submodule."""
    result = LayerResult()
    for group, submodules in enumerate(streams.decoder.architecture.input_groups):
        own = {submodule: plans[submodule] for submodule in submodules}
        compress_input_group(streams, group, own, result)
    if recovery and result.weights:
        _recover(streams, plans, result, recovery)
    return result


def _recover(streams: Streams, plans: dict[str, LinearPlan], result: LayerResult, schedule: Schedule) -> None:
    """Train the remaining weights of the layer towards the dense stream; update the weights of `result`."""
    dense = streams.dense
    assert dense is not None
    dense.leave()
    latent = {submodule: latent_weights(plans[submodule], streams, result) for submodule in result.weights}
    result.weights, result.curve = recover_block(
        streams.layer,
        Compressed(result.weights, latent, {submodule for submodule, plan in plans.items() if plan.zeros_fixed}),
        streams.compressed.hidden.sequences,
        dense.hidden.sequences,
        streams.fitted,
        streams.held,
        schedule,
        streams.options.micro(streams.length),
    )
    streams.compressed.enter(streams.decoder.layer(streams.number))
    fold(streams.layer.module, result.permutations, streams.decoder.free)
    put(streams, result.weights)
