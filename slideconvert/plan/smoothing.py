"""Where smoothing can help: linears that share an input and all quantize it to 8-bit integers.

FP8 has its precision relative to each number, so that a large channel costs the others nothing. Float16 could overflow
or lose bits to a scale, bfloat16 and float32 cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..checkpoint.reader import Checkpoint
from ..models.architecture import HEADS
from ..models.families import architecture_of
from ..permute.permutations import read_permutations
from .linear import LinearPlan

EXACT = ("BF16", "F32")
"""Stored dtypes whose numbers a power of two scales without a loss."""

Smoothable = dict[int, dict[str, int]]
"""By decoder layer and the submodule that makes the channels, the number of the input group that reads them."""


def smoothable(source: Checkpoint, linears: Sequence[LinearPlan]) -> Smoothable:
    """The inputs that can be smoothed. Inner channels that an earlier conversion has permuted are left out: their
    scales would have another order than those of the first source."""
    architecture = architecture_of(source.config)
    by_name = {plan.linear.name: plan for plan in linears}
    permuted = {layer for layer, parts in read_permutations(source).items() if parts.keys() - {HEADS}}
    found: Smoothable = {}
    for layer in sorted({plan.linear.layer for plan in linears}):
        prefix = architecture.layer(layer)
        for maker, readers in architecture.scaled.items():
            members = [by_name[f"{prefix}.{submodule}"] for submodule in readers]
            inner = f"{prefix}.{maker}" in by_name
            made = _gives_scales(source, f"{prefix}.{maker}", by_name) and not (inner and layer in permuted)
            if made and all(map(_takes_scales, members)):
                found.setdefault(layer, {})[maker] = members[0].linear.group
    return found


def _gives_scales(source: Checkpoint, maker: str, by_name: Mapping[str, LinearPlan]) -> bool:
    """Whether a norm or a linear is stored as floats that can be scaled, and may be changed."""
    if maker in by_name and not _is_float(by_name[maker]):
        return False
    return f"{maker}.weight" in source.tensors and source.spec(f"{maker}.weight").dtype in EXACT


def _takes_scales(plan: LinearPlan) -> bool:
    """Whether a linear quantizes its inputs to 8-bit integers, and its stored weights are floats that can be scaled."""
    scheme = plan.scheme
    if not _is_float(plan) or not scheme.quantized:
        return False
    return scheme.activation_bits == 8 and scheme.torch_dtype == torch.int8


def _is_float(plan: LinearPlan) -> bool:
    """Whether a linear is converted from floats that can be scaled, to weights that may take any value."""
    stored = plan.stored
    if plan.kept or stored.scheme.quantized or plan.scheme.ternary:
        return False
    return all(spec.dtype in EXACT for spec in stored.tensors)
