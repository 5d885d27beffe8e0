"""End-to-end training after all layers are compressed: first the dense model's last hidden states, then the student.

The dense model runs once, layer by layer, before the student exists; the head, which both share, makes logits of its
last hidden states again. These are stored in the dtype in which the model runs, in which the head reads them anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ranks
from ..core.quantize import Weight
from ..models.decoder import Decoder, Layer
from ..models.layered import LayeredModel
from ..permute.fold import fold
from ..plan.plan import Plan
from ..plan.training_memory import stays_resident
from ..progress import Progress
from ..recover.end_to_end import recover_end_to_end
from ..recover.options import Curve, Schedule, TrainingOptions
from ..recover.rebuilt import RebuiltLinear
from ..recover.trainable import Compressed, Trainable, make_trainable
from .activations import Activations
from .result import LayerResult
from .stream import Stream, StreamOptions, embed, held_out

TARGETS = "targets"
"""The name of the first pass in progress and files."""


def dense_outputs(decoder: Decoder, tokens: Tensor, options: StreamOptions, progress: Progress) -> Activations:
    """The dense model's last hidden states [sequences, length, hidden] of tokens [sequences, length] int64, in
    `options.dtype`, in CPU memory or on disk."""
    stream = Stream(TARGETS, embed(decoder, (tokens,), options, f"{TARGETS}-hidden"), options)
    count = int(decoder.source.config["num_hidden_layers"])
    for number in range(count):
        progress(TARGETS, number, count)
        stream.enter(decoder.layer(number))
        stream.leave()
    norm, found = decoder.final_norm(), options.store_beside(TARGETS)
    with torch.no_grad():
        for states in stream.hidden:
            found.append(norm(states).to(options.dtype))
    progress(TARGETS, count, count)
    return found


def train_whole_model(
    plan: Plan,
    found: Sequence[LayerResult],
    tokens: Tensor,
    options: StreamOptions,
    schedule: Schedule,
    training: TrainingOptions,
    *,
    taught: bool,
    progress: Progress,
) -> tuple[dict[str, Weight], Curve]:
    """End-to-end recovery of all layers: trained weights by module name, and losses.

    found: results of all layers, in order. tokens [sequences, length] int64, the generated ones first. taught:
    train towards the dense model's predictions, not the tokens.
    """
    decoder = Decoder(plan.source, options.device, options.dtype)
    decoder.record_passed(tokens.shape[1])
    fitted, held = held_out(len(tokens), plan.generated)
    mine, _ = ranks.share(torch.arange(len(tokens)))
    dense = dense_outputs(decoder, tokens[mine], options, progress) if taught else None
    resident = stays_resident(plan, options.dtype)
    layers: list[Layer] = []
    trained: dict[str, Trainable] = {}
    for number, result in enumerate(found):
        layer, own = _student_layer(plan, decoder, number, result, resident=resident)
        layers.append(layer)
        trained |= {f"{decoder.architecture.layer(number)}.{submodule}": linear for submodule, linear in own.items()}
    student = LayeredModel(
        decoder.embedding(),
        layers,
        decoder.final_norm(),
        decoder.head(),
        at_once=options.micro(tokens.shape[1]),
        offload=training.offload,
        left=_leave,
    )
    targets = dense.sequences if dense else None
    return recover_end_to_end(student, trained, targets, tokens, fitted, held, schedule, training)


def _student_layer(
    plan: Plan, decoder: Decoder, number: int, result: LayerResult, *, resident: bool
) -> tuple[Layer, dict[str, Trainable]]:
    """A layer with trainable linears, and these by submodule. Its kept linears are in the dtype of the running model,
    to which they would be cast for every product."""
    layer, device = decoder.layer(number), str(decoder.device)
    fold(layer.module, result.permutations, decoder.free)
    plans = {linear.linear.submodule: linear for linear in plan.linears if linear.linear.layer == number}
    weights = {submodule: weight.to(device) for submodule, weight in result.weights.items()}
    latent = {own: plans[own].latent_weights(plan.source, result.permutations, device) for own in weights}
    fixed = {submodule for submodule, own in plans.items() if own.zeros_fixed}
    trained = make_trainable(layer.module, Compressed(weights, latent, fixed), frozen=True, resident=resident)
    for submodule in plans.keys() - trained.keys():
        layer.set_weight(submodule, layer.linear(submodule).weight.data.to(decoder.dtype))
    return layer, trained


def _leave(layer: Layer) -> None:
    """Forget the dense weights of a layer's trainable linears after a pass; resident ones serve the backward pass."""
    for module in layer.module.modules():
        if isinstance(module, RebuiltLinear) and not (module.resident and torch.is_grad_enabled()):
            module.release()
