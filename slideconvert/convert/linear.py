"""Convert one linear: read, prune, quantize, encode, and measure the error.

Two laws: the mask is computed from the float weight if there is one (rounding creates ties, and pruning after
quantization loses more), and a pruned code means exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibrate.result import LayerResult
from ..core.quantize import Weight
from ..core.select import apply_mask
from ..core.weights import ChangeSums, check_finite, floats, ratio, sum_changes, take_rows, values
from ..kernels.planes import row_blocks
from ..models.finite import finite
from ..permute.permutations import permute_vector, permute_weight, vectors_beside
from ..plan.linear import LinearPlan
from ..plan.plan import Plan
from ..prune import METHODS
from ..prune.direct import compress_directly
from ..report import LayerReport


@dataclass(frozen=True)
class ConvertedLinear:
    """The tensors of a linear as stored, on the CPU; its report; and the result of its layer if it was calibrated."""

    tensors: dict[str, Tensor]
    report: LayerReport
    solved: LayerResult | None


def convert_linear(plan: Plan, device: str, linear: LinearPlan, solved: LayerResult | None = None) -> ConvertedLinear:
    """Read one linear from the source, prune and quantize it on `device`, and encode it.

    solved: the calibration result of its layer; without one, this function prunes and rounds the linear. Rows are
    independent, so each chunk of rows goes through all steps while it is in the cache; a linear whose rows are selected
    or stored together is one chunk. InputError for weights that are not finite, and PatternError for those that violate
    a pattern that they should satisfy already.
    """
    source, beside = _read(plan, device, linear, solved)
    latent = linear.latent_weights(plan.source, {}, device) if linear.method and not solved else None
    made = solved.weights.get(linear.linear.submodule) if solved else None
    parts: list[dict[str, Tensor]] = []
    total = ChangeSums()
    for rows in [slice(None)] if linear.whole else row_blocks(values(source)):
        before = take_rows(source, rows)
        if made is None:
            latent_rows = None if latent is None else latent[rows]
            pruned, after = compress_directly(before, linear.method, linear.pattern, linear.scheme, latent_rows)
        else:
            solved_rows = take_rows(made, rows).to(device)
            pruned = apply_mask(floats(before), floats(solved_rows) != 0)
            after = linear.scheme.store(solved_rows)
        parts.append({} if linear.kept else linear.format.encode(linear.linear.name, after, linear.pattern))
        total += sum_changes(before, pruned, after)
    tensors = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return ConvertedLinear(beside | tensors, _report(linear, source, total, solved), solved)


def _read(plan: Plan, device: str, linear: LinearPlan, solved: LayerResult | None) -> tuple[Weight, dict[str, Tensor]]:
    """The checked weight of the source, and the vectors that move with it, both in the channel order of the output."""
    name, submodule = linear.linear.name, linear.linear.submodule
    source, beside = linear.stored.read(plan.source).to(device), {}
    if solved and submodule in solved.weights:
        free = plan.architecture.free_channels(plan.source.config)
        source = permute_weight(submodule, source, solved.permutations, free)
        prefix = name.removesuffix(submodule)
        for vector in vectors_beside(submodule, free):
            if linear.permuted and prefix + vector in plan.source.tensors:
                before = finite(plan.source, prefix + vector)
                beside[prefix + vector] = permute_vector(vector, before, solved.permutations, free)
    check_finite(source, name)
    if not (linear.method and METHODS[linear.method].prunes):
        linear.pattern.check(values(source), name)
    return source, beside


def _report(linear: LinearPlan, source: Weight, total: ChangeSums, solved: LayerResult | None) -> LayerReport:
    """The report of a linear. total: the sums over all its rows."""
    submodule = linear.linear.submodule
    return LayerReport(
        name=linear.linear.name,
        layer=linear.linear.layer,
        kind=linear.linear.kind,
        shape=linear.stored.shape,
        scheme=linear.scheme.name,
        pattern=str(linear.pattern),
        method=linear.method,
        kept=linear.kept,
        zeros=linear.weights - total.nonzeros[2],
        pruned=total.nonzeros[0] - total.nonzeros[1],
        error=ratio(total.loss, total.energy),
        prune_error=ratio(total.prune_loss, total.energy),
        bytes_before=linear.stored.bytes,
        bytes_after=sum(spec.bytes for spec in linear.outputs),
        slid_columns=linear.slid_columns,
        activation_error=solved.activation_errors.get(submodule) if solved else None,
        notes=solved.notes.get(submodule, ()) if solved else (),
        legal_groups=linear.pattern.legal_blocks(values(source)) if linear.stored.scheme.ternary else None,
    )
