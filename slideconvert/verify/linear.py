"""Check one linear of a finished checkpoint: by itself, and against its source.

Blocks of rows go through all checks one after another, as in a conversion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..core.patterns import Pattern
from ..core.quantize import QuantizedWeight, Weight
from ..core.weights import ChangeSums, check_finite, energy, floats, inner_product, nonzeros, ratio, take_rows, values
from ..errors import InputError, SlideConvertError
from ..formats.base import StoredLinear
from ..formats.record import Record, describe_linear
from ..formats.registry import format_for
from ..kernels.planes import bits, blocks, negative, nonzero
from ..models.architecture import Linear
from ..models.families import architecture_of
from ..permute.permutations import Permutations, permute_weight

LEAST_COSINE = 0.1
"""Least cosine between a linear whose weights have moved and its source. Weights that compensate for half of the others
may differ from the source by more than its norm: rows that write a large channel of the residual stream do, on little
text. The cosine of unrelated linears is about 1 / sqrt(weights), at most 0.02."""
ROUNDING_SLACK = 1 + 2**-16
"""Factor on the rounding error for the float32 rounding of w / scale and code * scale, with a wide margin: each adds a
relative error below 2**-23, of quotients up to 448."""


@dataclass(frozen=True)
class LinearVerdict:
    """The result for one linear.

    pattern: "kept" for a kept linear. shape: (out, in). bytes: of weight and scales, as stored. error: relative
    Frobenius error against the source, None without a source. tensors: the names of its tensors. fault: what is wrong,
    "" if it is sound.
    """

    name: str
    scheme: str
    pattern: str
    shape: tuple[int, int]
    zeros: int
    bytes: int
    error: float | None
    tensors: tuple[str, ...]
    fault: str


@dataclass(frozen=True)
class Side:
    """A checkpoint with its record: the output, or the source, whose record may be None.

    permutations: by layer, the order of the source's channels in the output.
    """

    checkpoint: Checkpoint
    record: Record | None
    permutations: dict[int, Permutations] = field(default_factory=dict)

    @property
    def permuted(self) -> bool:
        """Whether some channels have another order than in the first source of the conversion."""
        return self.record is not None and any(linear.permuted for linear in self.record.linears.values())

    @property
    def smoothed(self) -> bool:
        """Whether some channels are scaled relative to the first source of the conversion."""
        return self.record is not None and any(linear.smoothed for linear in self.record.linears.values())

    def weight(self, linear: Linear, stored: StoredLinear) -> Weight:
        """The weight [out, in] of this checkpoint with rows and columns in the order of the output."""
        permutations, config = self.permutations.get(linear.layer, {}), self.checkpoint.config
        free = architecture_of(config).free_channels(config)
        return permute_weight(linear.submodule, stored.read(self.checkpoint), permutations, free)


def verify_linear(ours: Side, source: Side | None, device: str, linear: Linear) -> LinearVerdict:
    """Check one linear of the output `ours`, against `source` if there is one; an error becomes its fault."""
    name, stored, found, fault = linear.name, None, ChangeSums(), ""
    try:
        stored = describe_linear(ours.checkpoint, ours.record, name)
        _check_record(ours, stored)
        original = describe_linear(source.checkpoint, source.record, name) if source else None
        if original and original.shape != stored.shape:
            raise InputError(f"{name}: shape {list(stored.shape)}, the source has {list(original.shape)}")
        parts = _read(ours, stored)
        theirs = source.weight(linear, original).to(device) if source and original else None
        schemes = [stored.scheme, *([original.scheme] if original else [])]
        moved = source is not None and _moved_since(ours, source, name)
        alone = stored.pattern.rows_independent and all(scheme.rows_independent for scheme in schemes)
        for rows in blocks(*stored.shape, device) if alone else [slice(0, stored.shape[0])]:
            where = name if not rows.start else f"{name} (rows counted from {rows.start})"
            block = {part: (tensor[rows] if alone else tensor).to(device) for part, tensor in parts.items()}
            weight = stored.decode(block, where)
            _check_weight(stored, block, weight, where)
            found += ChangeSums(nonzeros=(0, 0, nonzeros(weight)))
            if source and theirs is not None:
                before = take_rows(theirs, rows)
                kept = ours.record is None or name not in ours.record.linears
                found += (
                    _check_moved(before, weight)
                    if moved
                    else _check_against(stored, before, weight, None if kept else stored.pattern, where)
                )
        if moved and found.energy and found.cosine < LEAST_COSINE:
            raise InputError(
                f"{name}: the cosine between it and the source is {found.cosine:.3f}; it is not the same linear"
            )
    except SlideConvertError as problem:
        fault = problem.what if name in problem.what else f"{name}: {problem.what}"
    entry = ours.record.linears.get(name) if ours.record else None
    return LinearVerdict(
        name=name,
        scheme=stored.scheme.name if stored else "?",
        pattern=str(entry.pattern) if entry else "kept",
        shape=stored.shape if stored else (0, 0),
        zeros=stored.shape[0] * stored.shape[1] - found.nonzeros[2] if stored and not fault else 0,
        bytes=stored.bytes if stored else 0,
        error=ratio(found.loss, found.energy) if source and not fault else None,
        tensors=tuple(spec.name for spec in stored.tensors) if stored else (),
        fault=fault,
    )


def _read(side: Side, stored: StoredLinear) -> dict[str, Tensor]:
    return {spec.name: side.checkpoint.read(spec.name) for spec in stored.tensors}


def _check_record(ours: Side, stored: StoredLinear) -> None:
    entry = ours.record.linears.get(stored.name) if ours.record else None
    if entry is None or ours.record is None:
        return
    layout = format_for(ours.record.layout, entry.scheme, entry.pattern).layout
    if (stored.scheme.name, stored.layout) != (entry.scheme.name, layout):
        raise InputError(
            f"{stored.name}: stored as {stored.scheme.name} {stored.layout}, the record says {entry.scheme.name} "
            f"{layout}"
        )


def _check_weight(stored: StoredLinear, block: dict[str, Tensor], weight: Weight, where: str) -> None:
    """Raise InputError for a fault that shows without the source."""
    check_finite(weight, where)
    if not stored.format.checks_pattern:
        stored.pattern.check(values(weight), where)  # for other formats, `encode` below checks it
    if not isinstance(weight, QuantizedWeight):
        return
    if not float(weight.scale.amin()) > 0:
        raise InputError(f"{where}: weight_scale is not positive everywhere")
    weight.scheme.check_codes(weight.codes, where)
    if stored.coding and not torch.equal(block[stored.tensors[0].name].float(), floats(weight)):
        raise InputError(f"{where}: the record says ternary, but not all weights are -1, 0 or 1 times the row's scale")
    if stored.format.canonical:
        for tensor, again in stored.encode(weight).items():
            if not torch.equal(bits(again), bits(block[tensor].view(again.shape))):
                raise InputError(f"{where}: {tensor} is not the canonical packing of its weights")


def _moved_since(ours: Side, source: Side, name: str) -> bool:
    """Whether, by the records, calibration or training changed the weights after the source was written."""
    entry = ours.record.linears.get(name) if ours.record else None
    before = source.record.linears.get(name) if source.record else None
    return entry is not None and entry.moved > (before.moved if before else 0)


def _check_moved(before: Weight, weight: Weight) -> ChangeSums:
    """Measure how much calibration and training changed some rows; `verify_linear` judges the sums over all rows."""
    old, new = floats(before), floats(weight)
    product = inner_product(old, new), energy(new)
    return ChangeSums(energy=energy(old), loss=energy(old - new), product=product)


def _check_against(
    stored: StoredLinear, before: Weight, weight: Weight, pattern: Pattern | None, where: str
) -> ChangeSums:
    """Measure the loss. InputError at the first weight that is neither the rounded source weight nor pruned.

    pattern: the pattern that the weights were pruned to; None if no weight may be pruned.
    """
    old, new = floats(before), floats(weight)
    difference = old - new
    measured = ChangeSums(energy=energy(old), loss=energy(difference))
    off = negative(bits(_rounding(stored, before, weight, old) - difference.abs_()))
    if not int(off.amin()):
        return measured
    prunable = pattern is not None and pattern.prunes
    wrong = off & nonzero(bits(new)) if prunable else off
    if int(wrong.amin()):
        row, column = (int(index) for index in wrong.nonzero()[0])
        raise InputError(
            f"{where}: row {row}, column {column} is {float(new[row, column]):.6g}, the source has "
            f"{float(old[row, column]):.6g}: more than rounding"
        )
    assert pattern is not None
    pattern.check_removed(off != 0, new != 0, where)
    return measured


def _rounding(stored: StoredLinear, before: Weight, weight: Weight, old: Tensor) -> Tensor:
    """The largest rounding error of each weight, [out, in] float32; 0 if the scheme keeps the source's weights."""
    if stored.scheme.keeps(before):
        return torch.zeros_like(old)
    scale = weight.scale.float() if isinstance(weight, QuantizedWeight) else torch.ones((), device=old.device)
    return stored.scheme.rounding_error(old, scale) * ROUNDING_SLACK
