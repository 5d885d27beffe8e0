"""Estimate the memory that a conversion and its calibration need, from shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core import workers
from ..models.families import architecture_of
from ..prune import METHODS
from .calibration import GENERATED_AT_ONCE, ON_A_GPU, Running, sequence_length
from .needs import Needs, Training
from .presets import KL
from .training_memory import block_training, end_training

if TYPE_CHECKING:
    from .plan import Plan

BASE_MEMORY = 900_000_000
"""Bytes that Python, torch, transformers and blocks of rows take for any model (measured, see benches/measured)."""
MATRICES, TERNARY_MATRICES, ROWS = 12, 14, 12
"""Float32 matrices in memory at the peak of a solve. [K, K]: statistics, held-out statistics, damped matrix, factors,
permuted copies; more where the descent over ternary codes follows. [N, K]: weight, target, mask, working copies of the
sweep and the refit."""
DIAGONAL_MATRICES, DIAGONAL_ROWS = 5, 4
"""MATRICES and ROWS of methods that use only the diagonal of the Gram matrix."""


def direct_memory(plan: Plan) -> int:
    """Estimated peak of main memory in bytes of a conversion on this machine, besides what calibration takes: the base,
    the linears in work and one that waits, a layer that is being written, and the next one, which is being collected.
    Linears count twice: verification has threads of its own, which do not get back what the others freed."""
    layer_of = plan.architecture.layer_of
    layers = [unit for shard in plan.shards for unit in shard.units if layer_of(unit.tensors[0].name) is not None]
    largest = max(linear.stored.bytes + sum(spec.bytes for spec in linear.outputs) for linear in plan.linears)
    return BASE_MEMORY + 2 * (workers.count() + 1) * largest + 2 * max(unit.bytes for unit in layers)


def needs(plan: Plan, how: Running = ON_A_GPU) -> Needs:
    """The memory that a calibrated plan needs on a GPU, or on a CPU in main memory besides `direct_memory`.
    benches/measured/converting.md compares the estimates with measured peaks."""
    config, calibration = plan.source.config, plan.recipe.calibration
    length = sequence_length(calibration, plan.source)
    tokens = (calibration.samples + plan.layer_generated) * length
    all_tokens = (calibration.samples + plan.generated) * length
    hidden, inner = (int(config[key]) for key in ("hidden_size", "intermediate_size"))
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
    ternary = any(linear.scheme.ternary for linear in plan.linears)
    full = (TERNARY_MATRICES if ternary else MATRICES, ROWS)
    square, wide = (DIAGONAL_MATRICES, DIAGONAL_ROWS) if diagonal else full
    solving = max(4 * (square * columns * columns + wide * rows * columns) for rows, columns in stacks)
    layer = sum(rows * columns for rows, columns in stacks)
    # Layers run in bfloat16 with fused attention; inputs of the Gram matrix are float32.
    of_token = 16 * hidden + 12 * inner
    running = how.dtype
    kept_inner = inner if how.kind == "cpu" else 0  # by the compressed stream alone
    ends = recovery is not None and recovery.end_epochs > 0
    taught = all_tokens if ends and recovery is not None and recovery.loss == KL else 0
    targets = taught * running.itemsize * hidden
    # The dense stream has passed the layer when it trains, and keeps no states within it.
    trained_hidden = tokens * (streams * 4 * hidden + running.itemsize * (attended + kept_inner))
    return Needs(
        hidden=trained_hidden + tokens * (streams - 1) * running.itemsize * attended,
        trained_hidden=trained_hidden,
        generating=_generating(plan, how) if plan.generated else 0,
        layer=4 * streams * layer,
        streams=streams,
        solving=solving,
        batch=min(how.tokens_at_once, tokens) * of_token,
        block_training=block_training(plan, how) if recovery and recovery.block_epochs else 0,
        target_states=taught * 4 * hidden + (targets if how.kind == "cpu" else 0),
        end_training=end_training(plan, how, targets) if ends else Training(),
    )


def _generating(plan: Plan, how: Running) -> int:
    """Bytes of the dense model, its embedding and head in float32, and the keys and values of the sequences that are
    generated together, of which a layer's are in memory twice as they grow."""
    config, architecture = plan.source.config, plan.architecture
    length = sequence_length(plan.recipe.calibration, plan.source)
    together = min(plan.generated, max(1, GENERATED_AT_ONCE[how.kind] // length))
    heads = int(config.get("num_key_value_heads") or architecture.head_count(config))
    words = int(config["vocab_size"])
    of_token = 2 * heads * architecture.head_size(config) * (int(config["num_hidden_layers"]) + 2)
    outside = words * int(config["hidden_size"]) * (1 if architecture.is_tied(config) else 2)
    # Of each sequence the logits of one token, as floats and as sums of probabilities in float64.
    logits = together * words * (4 + 3 * 8)
    return how.dtype.itemsize * (plan.weights + together * length * of_token) + 4 * outside + logits
