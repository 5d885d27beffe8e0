"""Read a finished checkpoint back and check that it is what it says: every file, every tensor, every weight.

Without the source: hashes, index, config, shapes and dtypes, the pattern at absolute positions, 2:4 windows,
canonical packing (slide and pack again: the same bytes, so nothing was lost or added), zeros stored as +0,
finite positive scales. With the source besides: copied tensors equal byte for byte, and every weight within its
scheme's rounding of the source's, but for at most two zeros a group, which pruning may take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .checkpoint.config import Record, describe_linear, quantization_config, read_record
from .checkpoint.files import CONFIG, INDEX
from .checkpoint.format import TensorSpec
from .checkpoint.reader import Checkpoint, read_json
from .checkpoint.staging import file_sha256
from .errors import InputError, SlideConvertError
from .layers import decoder_linears
from .layout import StoredLinear, stored_tensors
from .measure import Weight, check_finite, floats, nonzeros, ratio, tally, values
from .patterns import ZEROS, Pattern
from .planes import bits, negative, nonzero, row_blocks, to_planes
from .progress import Progress, silent
from .prune.select import check_pattern
from .quantize import QuantizedWeight
from .workers import in_order

ROUNDING_SLACK = 1 + 2**-16
"""Float32 rounding of w / scale and code * scale, generously: each is below 2**-23 relative of at most 448."""


@dataclass(frozen=True)
class LinearVerdict:
    """What was found in one linear. error: relative to the source, None without one. fault: "" if sound."""

    name: str
    scheme: str
    pattern: str
    shape: tuple[int, int]
    zeros: int
    bytes: int
    error: float | None
    fault: str


@dataclass
class Verdict:
    """The whole check: tensors re-read, linears one by one, faults in words (empty: sound)."""

    tensors: int = 0
    linears: list[LinearVerdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def verify_checkpoint(
    checkpoint: Checkpoint,
    *,
    source: Checkpoint | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Check a checkpoint of ours, against its source if one is given. InputError if it is not one of ours."""
    record = read_record(checkpoint.config, str(checkpoint.path / CONFIG))
    if record is None:
        raise InputError(
            f"{checkpoint.path / CONFIG} has no slidesparse_config: not written by slideconvert",
            hint="only slideconvert's checkpoints can be verified",
        )
    verdict = Verdict()
    verdict.faults += [*_file_faults(checkpoint, record), *_config_faults(checkpoint, record)]
    linears = decoder_linears(checkpoint.config)
    owned: set[str] = set()
    source_record = read_record(source.config, str(source.path)) if source else None
    check = partial(_verify_linear, checkpoint, record, source, source_record)
    for number, (linear, tensors) in enumerate(in_order(check, [linear.name for linear in linears])):
        progress("verify", number, len(linears))
        owned |= tensors
        verdict.linears.append(linear)
        if linear.fault:
            verdict.faults.append(linear.fault)
    for name in sorted(checkpoint.tensors.keys() - owned):
        owned.add(name)
        fault = _copy_fault(checkpoint, checkpoint.spec(name), source)
        if fault:
            verdict.faults.append(fault)
    verdict.tensors = len(owned)
    if source:
        verdict.faults += _lost_tensors(checkpoint, source, owned)
    progress("verify", len(linears), len(linears))
    return verdict


def _file_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    for name, digest in {**record.files, **record.kernels}.items():
        path = checkpoint.path / name
        if not path.is_file():
            yield f"{name}: file is missing"
        elif file_sha256(path) != digest:
            yield f"{name}: sha256 differs from the record's {digest[:12]}…: the file was changed after conversion"
    for path in checkpoint.shards:
        if path.name not in record.files:
            yield f"{path.name}: a weight file that the record does not know"
    if (checkpoint.path / INDEX).is_file():
        said = read_json(checkpoint.path / INDEX).get("metadata", {}).get("total_size")
        total = sum(placed.spec.bytes for placed in checkpoint.tensors.values())
        if said != total:
            yield f"{INDEX}: total_size {said}, the tensors have {total} bytes"


def _config_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    names = [linear.name for linear in decoder_linears(checkpoint.config)]
    unknown = sorted(record.linears.keys() - set(names))
    if unknown:
        yield f"{CONFIG}: record of {unknown[0]}, which the model does not have"
    kept = [name for name in names if name not in record.linears]
    if checkpoint.config.get("quantization_config") != quantization_config(record.linears, kept, record.layout):
        yield f"{CONFIG}: quantization_config does not agree with the record of the linears"


def _verify_linear(
    checkpoint: Checkpoint, record: Record, source: Checkpoint | None, source_record: Record | None, name: str
) -> tuple[LinearVerdict, set[str]]:
    """The verdict on one linear, and the names of its tensors."""
    entry = record.linears.get(name)
    stored, weight, error, fault = None, None, None, ""
    try:
        stored = describe_linear(checkpoint, record, name)
        if entry and (
            stored.scheme.name != entry.scheme or (stored.scheme.quantized and stored.layout != record.layout)
        ):
            raise InputError(f"{name}: stored as {stored.scheme.name} {stored.layout}, the record says {entry.scheme}")
        weight = stored.read(checkpoint)
        _check_weight(checkpoint, stored, weight)
        if source:
            original = describe_linear(source, source_record, name).read(source)
            measured = tally(original, original, weight)
            error = ratio(measured.loss, measured.energy)
            _check_against(original, weight, stored.pattern if entry else None, name)
    except SlideConvertError as problem:
        fault = problem.what if name in problem.what else f"{name}: {problem.what}"
    tensors = {spec.name for spec in stored.tensors} if stored else set()
    verdict = LinearVerdict(
        name=name,
        scheme=stored.scheme.name if stored else "?",
        pattern=str(stored.pattern) if stored and entry else "kept",
        shape=stored.shape if stored else (0, 0),
        zeros=stored.shape[0] * stored.shape[1] - nonzeros(weight) if stored and weight is not None else 0,
        bytes=stored.bytes if stored else 0,
        error=error,
        fault=fault,
    )
    return verdict, tensors


def _check_weight(checkpoint: Checkpoint, stored: StoredLinear, weight: Weight) -> None:
    """What must hold whatever the source was."""
    name = stored.name
    check_finite(weight, name)
    check_pattern(values(weight), stored.pattern, name)
    if not isinstance(weight, QuantizedWeight):
        return
    if not (weight.scale > 0).all():
        raise InputError(f"{name}.weight_scale: not positive everywhere")
    if stored.scheme.ct_type == "float" and int(bits(weight.codes).amin()) == -128:
        raise InputError(f"{name}: a zero is stored as -0 (byte 0x80)")
    if stored.layout == "slide":
        # Packed form is canonical: the codes, slid and packed again, must give the very bytes that were read.
        for tensor, again in stored_tensors(name, weight, stored.pattern, "slide").items():
            if not torch.equal(bits(again), bits(checkpoint.read(tensor).view(again.shape))):
                raise InputError(f"{tensor}: not the canonical packing of its weights")


def _check_against(original: Weight, weight: Weight, pattern: Pattern | None, name: str) -> None:
    """Raise InputError at the first weight that is neither the source's (rounded) nor pruned.

    pattern: what may have been pruned by; None if nothing may.
    """
    if values(original).shape != values(weight).shape:
        raise InputError(f"{name}: shape {list(values(weight).shape)}, the source has {list(values(original).shape)}")
    for rows in row_blocks(values(weight)):
        old, new = floats(original, rows), floats(weight, rows)
        off = negative(bits(_rounding(original, weight, old, rows) - (old - new).abs()))
        if not int(off.amin()):
            continue
        prunable = pattern is not None and pattern.prunes
        wrong = off & nonzero(bits(new)) if prunable else off
        if int(wrong.amin()):
            row, column = (int(index) for index in wrong.nonzero()[0])
            raise InputError(
                f"{name}: row {rows.start + row}, column {column} is {float(new[row, column]):.6g}, the source has "
                f"{float(old[row, column]):.6g}: more than rounding"
            )
        assert pattern is not None
        taken = -to_planes(off.to(torch.int8), pattern.group).sum(0, dtype=torch.int8)
        if int(taken.amax()) > ZEROS:
            row, group = (int(index) for index in (taken > ZEROS).nonzero()[0])
            raise InputError(
                f"{name}: row {rows.start + row}, group {group} lost {int(taken[row, group])} weights, "
                f"{pattern} takes {ZEROS}"
            )


def _rounding(original: Weight, weight: Weight, old: Tensor, rows: slice) -> Tensor:
    """The largest error that rounding to the scheme can make, per weight; 0 where nothing was to be rounded."""
    if isinstance(original, QuantizedWeight) or not isinstance(weight, QuantizedWeight):
        return torch.zeros_like(old)
    scale = weight.scale[rows].float()
    if weight.scheme.ct_type == "int":
        return scale * (0.5 * ROUNDING_SLACK)
    # E4M3 has three mantissa bits: half a step is at most 2**-4 of the value, and 2**-10 among the subnormals.
    return torch.maximum(old.abs() * 2**-4, scale * 2**-10) * ROUNDING_SLACK


def _copy_fault(checkpoint: Checkpoint, spec: TensorSpec, source: Checkpoint | None) -> str:
    """What is wrong with a tensor that is merely carried along; "" if nothing."""
    if source is None:
        return ""
    if spec.name not in source.tensors:
        return f"{spec.name}: the source has no such tensor"
    if source.spec(spec.name) != spec:
        return f"{spec.name}: {spec.dtype} {list(spec.shape)}, the source has another dtype or shape"
    same = all(
        torch.equal(bits(ours), bits(theirs))
        for ours, theirs in zip(checkpoint.pieces(spec.name), source.pieces(spec.name), strict=True)
    )
    return "" if same else f"{spec.name}: differs from the source"


def _lost_tensors(checkpoint: Checkpoint, source: Checkpoint, owned: set[str]) -> Iterator[str]:
    linears = {linear.name for linear in decoder_linears(source.config)}
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    for name in sorted(source.tensors.keys() - owned):
        module, _, part = name.rpartition(".")
        of_linear = module in linears and part.startswith("weight")
        if not of_linear and not (tied and name == "lm_head.weight"):
            yield f"{name}: the source's tensor is missing"
