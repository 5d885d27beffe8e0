"""Estimate the memory that a conversion and its calibration need, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..core import workers
from ..core.precision import running_dtype
from ..models.families import architecture_of
from ..models.head import PIECE
from ..prune import METHODS
from .calibration import BATCH_TOKENS, GENERATED_AT_ONCE, sequence_length

if TYPE_CHECKING:
    from .plan import Plan

BASE_MEMORY = 900_000_000
"""Bytes that Python, torch, transformers and blocks of rows take for any model (measured, see BENCHMARKS.md)."""
MATRICES, ROWS = 14, 12
"""Float32 matrices in memory at the peak of a solve. [K, K]: statistics, held-out statistics, damped matrix, factors,
permuted copies. [N, K]: weight, target, mask, working copies of the sweep and the refit."""
LOGITS = 10
"""Pieces of logits in memory at the peak of end-to-end training."""
DIAGONAL_MATRICES, DIAGONAL_ROWS = 5, 4
"""MATRICES and ROWS of methods that use only the diagonal of the Gram matrix."""


@dataclass(frozen=True)
class Needs:
    """Bytes by purpose.

    hidden: hidden states of all tokens between layers and within one, wherever they are stored (inner states only on a
    CPU). generating: the dense model and its key-value cache, 0 if it generates no text. layer: weights of the current
    layer, for each stream. solving: the largest input group with its matrices.
    batch: tokens that run through a layer at once. block_training, end_training: weights, gradients and Adam's moments
    of recovery by block and end to end, 0 without it.
    """

    hidden: int
    generating: int
    layer: int
    solving: int
    batch: int
    block_training: int
    end_training: int

    @property
    def device(self) -> int:
        """Peak on the device where the model computes, without the hidden states, which may be stored elsewhere."""
        return max(
            self.generating,
            self.layer + max(self.solving, self.batch),
            self.layer + self.block_training,
            self.end_training,
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "device": self.device}


def direct_memory(plan: Plan) -> int:
    """Estimated peak of main memory in bytes of a conversion on this machine, besides what calibration takes: the base,
    the linears in work and one that waits, a layer that is being written, and the next one, which is being collected.
    Linears count twice: verification has threads of its own, which do not get back what the others freed."""
    layer_of = plan.architecture.layer_of
    layers = [unit for shard in plan.shards for unit in shard.units if layer_of(unit.tensors[0].name) is not None]
    largest = max(linear.stored.bytes + sum(spec.bytes for spec in linear.outputs) for linear in plan.linears)
    return BASE_MEMORY + 2 * (workers.count() + 1) * largest + 2 * max(unit.bytes for unit in layers)


def needs(plan: Plan, device: str = "cuda") -> Needs:
    """The memory that a calibrated plan needs on a GPU, or with "cpu" in main memory besides `direct_memory`.
    BENCHMARKS.md compares the estimates with measured peaks."""
    config, calibration = plan.source.config, plan.recipe.calibration
    length = sequence_length(calibration, plan.source)
    tokens = (calibration.samples + plan.generated) * length
    hidden, inner, vocabulary = (int(config[key]) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    architecture = architecture_of(config)
    attended = architecture.head_count(config) * architecture.head_size(config)
    recovery = plan.recovery
    dense_inputs = any(METHODS[linear.method].uses_dense_inputs for linear in plan.linears if linear.method)
    streams = 2 if dense_inputs or recovery else 1
    shapes = {linear.linear.name: linear.stored.shape for linear in plan.linears}
    first = {linear.linear.submodule: shapes[linear.linear.name] for linear in plan.linears if linear.linear.layer == 0}
    stacks = [
        (sum(first[submodule][0] for submodule in submodules), first[submodules[0]][1])
        for submodules in architecture.input_groups
    ]
    diagonal = all(METHODS[linear.method].diagonal for linear in plan.linears if linear.calibrated)
    square, wide = (DIAGONAL_MATRICES, DIAGONAL_ROWS) if diagonal else (MATRICES, ROWS)
    solving = max(4 * (square * columns * columns + wide * rows * columns) for rows, columns in stacks)
    layer = sum(rows * columns for rows, columns in stacks)
    # Layers run in bfloat16 with fused attention; inputs of the Gram matrix are float32. Training needs as much.
    of_token = 16 * hidden + 12 * inner
    # This machine may have no GPU.
    running = torch.bfloat16 if device == "cuda" else running_dtype("auto", torch.device(device))
    kept_inner = inner if device == "cpu" else 0  # by the compressed stream alone
    return Needs(
        hidden=tokens * (streams * (4 * hidden + running.itemsize * attended) + running.itemsize * kept_inner),
        generating=_generating(plan, device, running) if plan.generated else 0,
        layer=4 * streams * layer,
        solving=solving,
        batch=min(BATCH_TOKENS[device], tokens) * of_token,
        block_training=4 * 5 * layer + recovery.batch * length * of_token if recovery else 0,
        end_training=_end_training(plan) + 4 * (2 * vocabulary * hidden + LOGITS * PIECE)
        if recovery and recovery.end_epochs
        else 0,
    )


def _generating(plan: Plan, device: str, running: torch.dtype) -> int:
    """Bytes of the dense model, its embedding and head in float32, and the keys and values of the sequences that are
    generated together, of which a layer's are in memory twice as they grow."""
    config, architecture = plan.source.config, plan.architecture
    length = sequence_length(plan.recipe.calibration, plan.source)
    together = min(plan.generated, max(1, GENERATED_AT_ONCE[device] // length))
    heads = int(config.get("num_key_value_heads") or architecture.head_count(config))
    words = int(config["vocab_size"])
    of_token = 2 * heads * architecture.head_size(config) * (int(config["num_hidden_layers"]) + 2)
    outside = words * int(config["hidden_size"]) * (1 if architecture.is_tied(config) else 2)
    # Of each sequence the logits of one token, as floats and as sums of probabilities in float64.
    logits = together * words * (4 + 3 * 8)
    return running.itemsize * (plan.weights + together * length * of_token) + 4 * outside + logits


def _end_training(plan: Plan) -> int:
    """Bytes of the linears of teacher and student in end-to-end training."""
    total = torch.bfloat16.itemsize * plan.weights  # the teacher's
    for linear in plan.linears:
        if linear.kept:
            total += torch.bfloat16.itemsize * linear.weights
        elif linear.scheme.grouped:
            # Packed codes and the index of each group; scale and zero point with gradient, moments and best state each.
            size, trained = linear.scheme.group, 1 if linear.scheme.symmetric else 2
            groups = linear.pattern.kept_groups(linear.stored.shape, size)
            mask = size if linear.zeros_fixed else 0
            total += groups * (size * linear.scheme.bits // 8 + 8 + 4 * 5 * trained + mask)
        else:
            total += (4 * 6 + 1) * linear.weights  # latent weights, masks, gradients, moments, best state; codes
    return total
