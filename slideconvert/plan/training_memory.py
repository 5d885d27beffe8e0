"""The memory of training by block and end to end, as slideconvert/recover keeps its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ..core.captured import LARGEST_INPUTS
from ..models.head import PIECE
from .calibration import Running, sequence_length, trained_at_once
from .linear import LinearPlan
from .needs import Training

if TYPE_CHECKING:
    import torch

    from .plan import Plan

FLOAT = 4
"""Bytes of a latent weight, a gradient, a moment, a state between layers: float32."""
REBUILDING = 12
"""Bytes for each weight of a linear while its dense weight is made: float32 copies of it, codes, places as int64."""
INDEX = 4
"""Bytes of the place of a kept weight or group while a layer is passed: int32."""
RESIDENT = 1 << 30
"""Most bytes of dense weights and places of a whole model that stay in memory from the forward to the backward pass of
training end to end, instead of being made again: larger models have kernels that take longer than their start."""
LEFT_HIDDEN, LEFT_INNER = 28, 7
"""Elements in the dtype of the running model, as multiples of hidden and intermediate size, that each token leaves for
the backward pass of a layer or takes in it; float32 states around norms and rotary embeddings count twice."""
HEAD_STATES, LAYER_STATES = 4, 2
"""Hidden states of a batch in memory besides those between layers, at the head: last ones, normed ones, targets, a
gradient; in a layer: gradients of its output and input."""
LOGITS = 10
"""Pieces of logits in memory at the peak of end-to-end training."""


class Trained(NamedTuple):
    """Bytes of linears in training. frozen: places of kept weights, packed codes, masks. variables: latent weights,
    scales and zero points in float32; their gradients take as much, their moments twice as much. pinned: the moments in
    pinned CPU memory, which torch allocates in powers of two."""

    frozen: int = 0
    variables: int = 0
    pinned: int = 0

    @property
    def moments(self) -> int:
        return 2 * self.variables


def block_training(plan: Plan, how: Running) -> int:
    """Bytes while the largest layer trains, the dense layer included, hidden states of all tokens not. On a CPU also
    the best state and the Gram matrices, which a GPU leaves in CPU memory."""
    assert plan.recovery is not None
    layers = _by_layer(plan)
    largest = max(layers.values(), key=lambda linears: sum(linear.weights for linear in linears))
    trained = _sum(largest, end_to_end=False)
    dense = FLOAT * sum(linear.weights for linear in largest)
    batch = plan.recovery.block_batch
    pairs = 2 * FLOAT * batch * _length(plan) * int(plan.source.config["hidden_size"])
    passed = sum(_dense(linear, how.dtype) for linear in largest) + _passing(plan, how, batch)
    whole = dense + _solved(largest) + trained.frozen + 4 * trained.variables + pairs + passed
    if how.kind != "cpu":
        return whole + _captured(pairs)
    inputs = {linear.linear.group: linear.stored.shape[1] for linear in largest}
    return whole + trained.variables + FLOAT * sum(columns * columns for columns in inputs.values())


def end_training(plan: Plan, how: Running, targets: int) -> Training:
    """Bytes of training end to end: all linears, moments and states between layers (which may be offloaded), one
    layer's gradients and activations, and the head. targets: bytes of the states that the model is trained towards."""
    assert plan.recovery is not None
    hidden, words = (int(plan.source.config[key]) for key in ("hidden_size", "vocab_size"))
    layers = _by_layer(plan)
    trained = _sum(plan.linears, end_to_end=True)
    gradients = max(_sum(linears, end_to_end=True).variables for linears in layers.values())
    kept = how.dtype.itemsize * sum(linear.weights for linear in plan.linears if linear.kept)
    batch = plan.recovery.end_batch
    state = FLOAT * batch * _length(plan) * hidden
    between = len(layers) * state
    logits = min(PIECE, batch * _length(plan) * words)
    head = how.dtype.itemsize * words * hidden
    lasting = trained.frozen + trained.variables + kept + head
    dense = [sum(_dense(linear, how.dtype) for linear in linears) for linears in layers.values()]
    resident = sum(dense) if stays_resident(plan, how.dtype) else 0
    # The backward pass of a layer follows that of the head.
    in_head = FLOAT * LOGITS * logits + HEAD_STATES * state
    in_layer = _passing(plan, how, batch) + gradients + LAYER_STATES * state + (0 if resident else max(dense))
    whole = lasting + trained.moments + between + resident + max(in_head, in_layer)
    captured = _captured(state + how.dtype.itemsize * state // FLOAT)
    # The best state, the embedding, and the results of all layers.
    host = targets + trained.variables + FLOAT * words * hidden + _solved(plan.linears)
    if how.kind == "cpu":
        return Training(whole + host)
    # With --offload, no step is captured.
    offloaded = trained.moments + between + captured
    return Training(whole + captured, offloaded, trained.pinned + between, host)


def stays_resident(plan: Plan, dtype: torch.dtype) -> bool:
    """Whether the dense weights of all layers, in `dtype`, stay in memory in training end to end."""
    return sum(_dense(linear, dtype) for linear in plan.linears) <= RESIDENT


def trained_variables(plan: Plan) -> int:
    """Bytes of the float32 variables that train end to end."""
    return _sum(plan.linears, end_to_end=True).variables


def _captured(inputs: int) -> int:
    """What a GPU keeps of the inputs of a step for its CUDA graph, where there is one. inputs: their bytes."""
    return inputs if inputs <= LARGEST_INPUTS else 0


def _by_layer(plan: Plan) -> dict[int, list[LinearPlan]]:
    layers: defaultdict[int, list[LinearPlan]] = defaultdict(list)
    for linear in plan.linears:
        layers[linear.linear.layer].append(linear)
    return layers


def _length(plan: Plan) -> int:
    return sequence_length(plan.recipe.calibration, plan.source)


def _passing(plan: Plan, how: Running, batch: int) -> int:
    """What the sequences of a batch that run through a layer at once leave for its backward pass, and the largest
    linear while it is rebuilt."""
    hidden, inner = (int(plan.source.config[key]) for key in ("hidden_size", "intermediate_size"))
    at_once = min(batch, trained_at_once(how.tokens_at_once, _length(plan)))
    of_token = how.dtype.itemsize * (LEFT_HIDDEN * hidden + LEFT_INNER * inner)
    largest = max(linear.weights for linear in plan.linears if not linear.kept)
    return at_once * _length(plan) * of_token + REBUILDING * largest


def _dense(linear: LinearPlan, dtype: torch.dtype) -> int:
    """The dense weight of a linear, and the places of what it keeps as indices."""
    if linear.kept:
        return 0
    kept = round(linear.pattern.density * linear.weights)
    if linear.scheme.grouped:
        kept = linear.pattern.kept_groups(linear.stored.shape, linear.scheme.group)
    return dtype.itemsize * linear.weights + INDEX * kept


def _sum(linears: Iterable[LinearPlan], *, end_to_end: bool) -> Trained:
    """The linears that are not kept. end_to_end: codes in groups are frozen and packed."""
    parts = [_trained(linear, end_to_end=end_to_end) for linear in linears if not linear.kept]
    return Trained(*(sum(part) for part in zip(*parts, strict=True)))


def _trained(linear: LinearPlan, *, end_to_end: bool) -> Trained:
    if not linear.scheme.grouped:
        kept = FLOAT * round(linear.pattern.density * linear.weights)
        return Trained(linear.weights // 8, kept, 2 * _power_of_two(kept))
    size, grid = linear.scheme.group, 1 if linear.scheme.symmetric else 2
    groups = linear.pattern.kept_groups(linear.stored.shape, size)
    frozen = linear.weights // size // 8 + (size * groups if linear.zeros_fixed else 0)
    if not end_to_end:
        return Trained(frozen, FLOAT * (grid + size) * groups)
    codes = groups * size * linear.scheme.bits // 8
    return Trained(frozen + codes, FLOAT * grid * groups, 2 * grid * _power_of_two(FLOAT * groups))


def _solved(linears: Iterable[LinearPlan]) -> int:
    """What calibration returns of linears: dense codes of a byte, or bfloat16; scales are small next to them."""
    return sum((1 if linear.scheme.quantized else 2) * linear.weights for linear in linears if not linear.kept)


def _power_of_two(count: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, count - 1).bit_length()
