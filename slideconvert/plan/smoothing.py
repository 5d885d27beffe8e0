"""Where smoothing can help: linears behind one norm that all quantize their inputs to 8-bit integers.

FP8 has its precision relative to each number, so that a large channel costs the others nothing. Float16 could overflow
or lose bits to a scale, bfloat16 and float32 cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checkpoint.reader import Checkpoint
from ..models.families import architecture_of
from ..smooth.scales import readers
from .linear import LinearPlan

EXACT = ("BF16", "F32")
"""Stored dtypes whose numbers a power of two scales without a loss."""

Smoothable = dict[int, dict[str, int]]
"""By decoder layer and norm, the number of the input group that reads it."""


def smoothable(source: Checkpoint, linears: Sequence[LinearPlan]) -> Smoothable:
    """The norms whose output can be smoothed."""
    architecture = architecture_of(source.config)
    by_name = {plan.linear.name: plan for plan in linears}
    found: Smoothable = {}
    for layer in sorted({plan.linear.layer for plan in linears}):
        prefix = architecture.layer(layer)
        for norm in architecture.residual_norms or ():
            members = [by_name[f"{prefix}.{submodule}"] for submodule in readers(architecture, norm)]
            name = f"{prefix}.{norm}.weight"
            if name in source.tensors and source.spec(name).dtype in EXACT and all(map(_takes_scales, members)):
                found.setdefault(layer, {})[norm] = members[0].linear.group
    return found


def _takes_scales(plan: LinearPlan) -> bool:
    """Whether a linear quantizes its inputs to 8-bit integers, and its stored weights are floats that can be scaled."""
    scheme, stored = plan.scheme, plan.stored
    if plan.kept or stored.scheme.quantized or scheme.ternary or not scheme.quantized:
        return False
    integers = scheme.activation_bits == 8 and scheme.torch_dtype == torch.int8
    return integers and all(spec.dtype in EXACT for spec in stored.tensors)
