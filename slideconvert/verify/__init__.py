"""Read a finished checkpoint back and check every file, every tensor and every weight against its record.

Without the source: hashes, index, config, shapes and dtypes, the pattern at absolute positions, 2:4 windows,
canonical packing (sliding and packing again gives the same bytes, so nothing was lost or added), zeros stored as +0,
finite positive scales. With the source: copied tensors are equal byte for byte, and every weight is within the rounding
error of its scheme of the source weight, except for weights that the pattern allows to prune. Where calibration or
training changed the weights, their errors are reported, and each linear must be nearer to its source than to zero.
Permuted channels are compared with the source's channels in the same order, smoothed ones with those of the source
scaled alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ..checkpoint.container import TensorSpec
from ..checkpoint.files import CHANNEL_ORDERS, CHANNEL_SCALES, CONFIG
from ..checkpoint.reader import Checkpoint
from ..core.workers import in_order
from ..errors import InputError
from ..formats.record import Record, describe_linear, read_record
from ..kernels.planes import bits
from ..models.completeness import model_faults, shapes_of, surplus_tensors
from ..models.families import architecture_of, decoder_linears
from ..models.finite import check_all_finite, finite, finite_pieces
from ..models.load import empty_model
from ..permute.permutations import between, permute_vector, read_permutations
from ..progress import Progress, silent
from ..smooth import scales
from .config import config_faults, source_faults
from .files import file_faults, file_notes
from .linear import LinearVerdict, Side, verify_linear

__all__ = ["LinearVerdict", "Verdict", "verify_checkpoint"]


@dataclass
class Verdict:
    """The result for a checkpoint.

    tensors: the number of tensors that were read back. linears: one verdict per decoder linear. faults: messages; empty
    if the checkpoint is sound. notes: what could not be checked, and why.
    """

    tensors: int = 0
    linears: list[LinearVerdict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_checkpoint(
    checkpoint: Checkpoint,
    *,
    source: Checkpoint | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Verdict:
    """Check a checkpoint that slideconvert wrote, against its source if one is given.

    device: where the weights are compared. progress: called with ("verify", linears done, all linears). Faults are in
    the Verdict. InputError if slideconvert did not write the checkpoint, or if a file of one side that tells how its
    channels are permuted or scaled is missing.
    """
    record = _own_record(checkpoint)
    verdict = Verdict()
    verdict.faults += config_faults(checkpoint, record)
    verdict.faults += _model_faults(checkpoint, record)
    verdict.notes += file_notes(checkpoint, record)
    ours = Side(checkpoint, record)
    theirs = _source_side(ours, source) if source else None
    linears, layer_of = decoder_linears(checkpoint.config), architecture_of(checkpoint.config).layer_of
    owned: set[str] = set()
    spoiled: dict[str, str] = {}

    def check_copies(layer: int | None) -> None:
        """Check the other tensors of a layer (None: those outside the layers) while its shards are still local."""
        for name in sorted(name for name in checkpoint.tensors.keys() - owned if layer_of(name) == layer):
            owned.add(name)
            try:
                _check_copy(checkpoint, checkpoint.spec(name), theirs)
            except InputError as error:
                spoiled[name] = error.what

    check_copies(None)
    with ThreadPoolExecutor(1) as hashing:
        files = hashing.submit(lambda: list(file_faults(checkpoint, record)))
        checked = in_order(partial(verify_linear, ours, theirs, device), linears, device)
        for number, (linear, verified) in enumerate(zip(linears, checked, strict=True)):
            progress("verify", number, len(linears))
            owned.update(verified.tensors)
            verdict.linears.append(verified)
            if verified.fault:
                verdict.faults.append(verified.fault)
            if number + 1 == len(linears) or linears[number + 1].layer != linear.layer:
                check_copies(linear.layer)
        verdict.faults[:0] = files.result()
    for layer in {layer_of(name) for name in checkpoint.tensors.keys() - owned}:
        check_copies(layer)
    verdict.faults += [spoiled[name] for name in sorted(spoiled)]
    verdict.tensors = len(owned)
    if source:
        verdict.faults += [*source_faults(checkpoint, source), *_lost_tensors(checkpoint, source, owned)]
    progress("verify", len(linears), len(linears))
    return verdict


def _model_faults(checkpoint: Checkpoint, record: Record) -> Iterator[str]:
    """Contradictions between config.json and the tensors. Linears that cannot be described have faults of their own."""
    stored = []
    for linear in decoder_linears(checkpoint.config):
        with suppress(InputError):
            stored.append(describe_linear(checkpoint, record, linear.name))
    faults = model_faults(checkpoint, shapes_of(empty_model(checkpoint)), stored)
    yield from (fault.what for fault in faults)


def _own_record(checkpoint: Checkpoint) -> Record:
    """The record in config.json. InputError without one."""
    record = read_record(checkpoint.config, str(checkpoint.path / CONFIG))
    if record is None:
        raise InputError(
            f"{checkpoint.path / CONFIG} has no slidesparse_config: not written by slideconvert",
            hint="only slideconvert's checkpoints can be verified",
        )
    return record


def _source_side(ours: Side, source: Checkpoint) -> Side:
    """The source to compare with, its channels scaled as the output's. InputError if their order or their scales are
    unknown on one side."""
    theirs = Side(source, read_record(source.config, str(source.path / CONFIG)))
    orders = [read_permutations(side.checkpoint) for side in (theirs, ours)]
    factors = [scales.read_scales(side.checkpoint) for side in (theirs, ours)]
    _check_lost(CHANNEL_ORDERS, theirs, ours, [theirs.permuted and not orders[0], ours.permuted and not orders[1]])
    _check_lost(CHANNEL_SCALES, theirs, ours, [theirs.smoothed and not factors[0], ours.smoothed and not factors[1]])
    scaled = scales.Smoothed.of(source, scales.between(*factors))
    return replace(theirs, checkpoint=scaled, permutations=between(*orders))


def _check_lost(name: str, theirs: Side, ours: Side, lost: list[bool]) -> None:
    """InputError if one side has lost the file `name`; if both have, one was made from the other, and they agree."""
    if sum(lost) == 1:
        path = (theirs if lost[0] else ours).checkpoint.path
        raise InputError(
            f"{path / name} is missing, so the order or the scales of the channels are unknown",
            hint="get the file again, or verify without a source",
        )


def _check_copy(checkpoint: Checkpoint, spec: TensorSpec, source: Side | None) -> None:
    """InputError unless a tensor is finite and, with a source, a copy of the source's."""
    if source is None:
        check_all_finite(checkpoint, [spec.name])
        return
    theirs = source.checkpoint
    if spec.name not in theirs.tensors:
        raise InputError(f"{spec.name}: the source has no such tensor")
    if theirs.spec(spec.name) != spec:
        raise InputError(f"{spec.name}: {spec.dtype} {list(spec.shape)}, the source has another dtype or shape")
    architecture = architecture_of(theirs.config)
    layer = architecture.layer_of(spec.name)
    if layer is not None:
        name, free = spec.name.removeprefix(f"{architecture.layer(layer)}."), architecture.free_channels(theirs.config)
        vector = permute_vector(name, theirs.read(spec.name), source.permutations.get(layer, {}), free)
        same = torch.equal(bits(finite(checkpoint, spec.name)), bits(vector))
    else:
        pairs = zip(finite_pieces(checkpoint, spec.name), theirs.pieces(spec.name), strict=True)
        same = all(torch.equal(bits(ours), bits(before)) for ours, before in pairs)
    if not same:
        raise InputError(f"{spec.name}: differs from the source")


def _lost_tensors(checkpoint: Checkpoint, source: Checkpoint, owned: set[str]) -> Iterator[str]:
    linears = {linear.name for linear in decoder_linears(source.config)}
    architecture = architecture_of(checkpoint.config)
    tied = architecture.is_tied(checkpoint.config)
    surplus = surplus_tensors(source, shapes_of(empty_model(source)))
    for name in sorted(source.tensors.keys() - owned - set(surplus)):
        module, _, part = name.rpartition(".")
        of_linear = module in linears and part.startswith("weight")
        if not of_linear and not (tied and name == f"{architecture.head}.weight"):
            yield f"{name}: the source's tensor is missing"
