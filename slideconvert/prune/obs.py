"""obs: mask from the sweep, survivors refitted, then rounded on the fixed mask. The default, called obs+ in the papers.

    1. target W*        aim at the dense model's outputs although the inputs have moved (asymmetric_target)
    2. mask             the SparseGPT sweep on W*, or ADMM (alps)
    3. refit            conjugate gradients on the survivors, stopped where held-out tokens say so
    4. rounding         the GPTQ sweep on the fixed mask, columns of largest input first

At a least squares solution the loss of any Q on the mask is a constant plus its distance to that solution, so
rounding may aim at the refitted weights alone (step 4 needs no data but the Gram matrix).

Ternary weights are rounded to -1, 0, 1 times their own scale, and then go through descent.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.patterns import BlockPattern, GroupPattern, Pattern
from ..core.quantize import Grid, QuantizedWeight, Weight
from ..core.schemes import Scheme
from ..core.select import apply_mask
from .alps import alps_mask
from .descent import descend
from .groups import group_losses
from .refit import asymmetric_target, refit, steps_to_take
from .statistics import Statistics
from .sweep import Damped, column_order, damp, group_order, sweep

STEPS = 12
"""Most steps of the refit; the held-out tokens usually stop it earlier."""
STRENGTH = 0.5
"""Share of the way to the exact asymmetric target."""


@dataclass(frozen=True)
class Solved:
    """What a calibrated method made of a weight. notes: anything degraded or unusual, in words."""

    weight: Weight
    notes: tuple[str, ...] = ()


def hessian(
    weight: Tensor, statistics: Statistics, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> Solved:
    """SparseGPT, joint with rounding in one sweep. weight [N, K] float32."""
    assert isinstance(pattern, BlockPattern)
    damped, weight = _prepared(weight, statistics.whole)
    grid = scheme.grid(weight) if scheme.quantized else None
    made, _ = sweep(weight, damped.gram, group_order(weight, damped, pattern), choose=pattern, grid=grid)
    return Solved(made, damped.notes)


def gptq(
    weight: Tensor, statistics: Statistics, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> Solved:
    """Quantization alone: the sweep with the mask that the weight has already. weight [N, K] float32."""
    damped, weight = _prepared(weight, statistics.whole)
    return Solved(on_mask(weight, weight != 0, damped, scheme), damped.notes)


def obs(
    weight: Tensor,
    statistics: Statistics,
    pattern: Pattern,
    scheme: Scheme,
    latent: Tensor | None = None,
    *,
    admm: bool = False,
) -> Solved:
    """weight [N, K] float32 -> the four steps above. admm: take the mask from ALPS instead of the sweep."""
    whole = statistics.whole
    damped, weight = _prepared(weight, whole)
    target = weight
    if whole.cross is not None:
        target = asymmetric_target(weight, damped, whole.cross, STRENGTH)
    keep, start = _mask(target, damped, pattern, admm=admm) if pattern.prunes else (weight != 0, target)
    steps, notes = STEPS, damped.notes
    if statistics.held is not None:
        fitted_only = damp(statistics.gram)
        steps = steps_to_take(weight, target, start, keep, fitted_only.gram, statistics.held, STEPS)
        notes = tuple(dict.fromkeys((*notes, *fitted_only.notes)))
    fitted = refit(target, start, keep, damped.gram, steps)
    if not scheme.ternary:
        return Solved(on_mask(fitted, keep, damped, scheme), notes)
    assert isinstance(pattern, BlockPattern)
    rounded = on_mask(fitted, keep, damped, scheme, scheme.grid(weight))
    assert isinstance(rounded, QuantizedWeight)
    codes, scale = descend(rounded.codes.float(), rounded.scale, target, damped.gram, pattern, latent)
    return Solved(QuantizedWeight(scheme.to_codes(codes), scale, scheme), notes)


def _mask(target: Tensor, damped: Damped, pattern: Pattern, *, admm: bool) -> tuple[Tensor, Tensor]:
    """target [N, K] float32 -> the keep mask [N, K] bool, and where the refit begins."""
    if admm:
        keep = alps_mask(target, damped.gram, pattern)
        return keep, target * keep
    if isinstance(pattern, GroupPattern):
        keep = pattern.select(group_losses(target, damped, pattern))
        return keep, target * keep
    assert isinstance(pattern, BlockPattern)
    swept, keep = sweep(target, damped.gram, group_order(target, damped, pattern), choose=pattern)
    assert isinstance(swept, Tensor)
    return keep, swept


def on_mask(weight: Tensor, keep: Tensor, damped: Damped, scheme: Scheme, grid: Grid | None = None) -> Weight:
    """Round weight [N, K] float32 to the scheme, zeros off the mask staying exactly zero.

    grid: of the codes, if it is known; else the one that the kept weights span.
    """
    if not scheme.quantized:
        return apply_mask(weight, keep)
    made, _ = sweep(weight, damped.gram, column_order(damped), keep=keep, grid=grid or scheme.grid(weight * keep))
    return made


def _prepared(weight: Tensor, statistics: Statistics) -> tuple[Damped, Tensor]:
    """The Gram matrix made safe to invert, and the weight without what meets dead inputs."""
    damped = damp(statistics.gram)
    return damped, torch.where(damped.dead, torch.zeros_like(weight), weight)
