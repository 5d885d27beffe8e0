"""Checks a rotated model against its source: every weight is the source's, rotated, within one rounding of its dtype.

The rotations of the folder are folded into the source again, in float64, and each weight is compared with the result.
A rounding to nearest moves a number x by at most half a unit in its last place: eps/2 · 2^⌊log2 |x|⌋, or half the least
subnormal. To a dtype of 16 bits it goes by way of float32, which adds 2^-24 of x. The rotations must be orthogonal
within the rounding of their entries to float32: then the source and the rotated model compute the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..checkpoint.files import CONFIG
from ..checkpoint.origin import ROTATION_NOTE
from ..checkpoint.reader import TORCH_DTYPES, Checkpoint
from ..checkpoint.staging import file_sha256
from ..core.choices import ALL
from ..errors import InputError
from ..kernels.planes import bits
from ..models.architecture import Architecture
from ..models.completeness import model_faults, shapes_of
from ..models.families import architecture_of
from ..models.finite import check_all_finite, finite_pieces
from ..models.load import NOT_ARCHITECTURE, empty_model
from ..progress import Progress, silent
from ..verify import Verdict
from .folding import Folding
from .record import read_rotation, read_rotations
from .rotations import Rotations

SLACK = 2.0**-30
"""Relative: sums of thousands of float64 products in two orders differ by less, even where most of a sum cancels."""
TIED = "tie_word_embeddings"


def verify_rotated(
    checkpoint: Checkpoint, *, source: Checkpoint | None = None, device: str = "cpu", progress: Progress = silent
) -> Verdict:
    """Check a checkpoint that `rotate` wrote, against its source if one is given. Faults are in the Verdict.

    progress: called with ("verify", tensors done, all tensors). InputError for a note that cannot be read.
    """
    record = read_rotation(checkpoint.path)
    architecture = architecture_of(checkpoint.config)
    identity = Rotations.identity(architecture, checkpoint.config, residual=record.parts == ALL)
    verdict = Verdict(tensors=len(checkpoint.tensors))
    verdict.faults += _file_faults(checkpoint, record.files)
    verdict.faults += [fault.what for fault in model_faults(checkpoint, shapes_of(empty_model(checkpoint)), [])]
    try:
        rotations = read_rotations(checkpoint.path, identity)
    except InputError as error:
        verdict.faults.append(error.what)
        return verdict
    verdict.faults += orthogonality_faults(rotations)
    if source is None:
        for name in sorted(checkpoint.tensors):
            verdict.faults += _finite_fault(checkpoint, name)
        return verdict
    verdict.faults += _config_faults(checkpoint, source, architecture, untied=record.parts == ALL)
    folding = Folding(source, rotations, device)
    wanted = {spec.name: spec for spec in folding.specs}
    for number, name in enumerate(sorted(wanted.keys() | checkpoint.tensors.keys())):
        progress("verify", number, len(wanted))
        if name not in wanted:
            verdict.faults.append(f"{name}: the source has no such tensor")
        elif name not in checkpoint.tensors:
            verdict.faults.append(f"{name}: the source's tensor is missing")
        elif checkpoint.spec(name) != wanted[name]:
            verdict.faults.append(f"{name}: another dtype or shape than the source's")
        else:
            verdict.faults += _tensor_fault(checkpoint, folding, name)
    progress("verify", len(wanted), len(wanted))
    return verdict


def rounding_bound(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest distance of exact float64 values from what they are rounded to in `dtype`."""
    info = torch.finfo(dtype)
    exponent = exact.abs().clamp(min=info.tiny).log2().floor()
    on_the_way = torch.finfo(torch.float32).eps / 2 if info.bits < 32 else 0.0
    return torch.exp2(exponent) * (info.eps / 2) + exact.abs() * (on_the_way + SLACK)


def orthogonality_faults(rotations: Rotations) -> Iterator[str]:
    """Rotations whose QᵀQ differs from 1 by more than the rounding of Q to float32.

    Entries are rounded by a factor of up to 1 ± 2^-24, so the product of two columns of norm 1 moves by at most
    2 · 2^-24; as much again is for float64 sums and for the search.
    """
    limit = 4 * 2.0**-24
    for name, matrix in rotations.tensors().items():
        blocks = matrix.double().view(-1, *matrix.shape[-2:])
        off = blocks.mT @ blocks - torch.eye(matrix.shape[-1], dtype=torch.float64)
        worst = float(off.abs().amax())
        if not worst <= limit:  # NaN too
            yield f"rotation {name} is not orthogonal: QᵀQ differs from 1 by {worst:.2g}, rounding explains {limit:.2g}"


def _tensor_fault(checkpoint: Checkpoint, folding: Folding, name: str) -> Iterator[str]:
    """What is wrong with a tensor, if anything."""
    exact = folding.exact(name)
    try:
        if exact is None:
            pairs = zip(finite_pieces(checkpoint, name), folding.source.pieces(name), strict=True)
            if not all(torch.equal(bits(ours), bits(theirs)) for ours, theirs in pairs):
                yield f"{name}: differs from the source"
            return
        dtype, start = TORCH_DTYPES[checkpoint.spec(name).dtype], 0
        for piece in exact:
            stop = start + piece.numel()
            ours = checkpoint.read_flat(name, start, stop).to(piece.device, torch.float64).view(piece.shape)
            over = ~((ours - piece).abs() <= rounding_bound(piece, dtype))
            if bool(over.any()):
                place = int(over.flatten().nonzero()[0])
                yield (
                    f"{name}: {int(over.sum())} values are not the source's, rotated: the first, element "
                    f"{start + place}, is {float(ours.flatten()[place]):.6g} instead of "
                    f"{float(piece.flatten()[place]):.6g}"
                )
                return
            start = stop
    except InputError as error:
        yield error.what


def _finite_fault(checkpoint: Checkpoint, name: str) -> Iterator[str]:
    try:
        check_all_finite(checkpoint, [name])
    except InputError as error:
        yield error.what


def _file_faults(checkpoint: Checkpoint, files: Mapping[str, str]) -> Iterator[str]:
    for name, digest in files.items():
        path = checkpoint.path / name
        if not path.is_file():
            yield f"{name}: file is missing"
        elif file_sha256(path) != digest:
            yield f"{name}: sha256 differs from the {digest[:12]}… of {ROTATION_NOTE}: the file was changed since"


def _config_faults(
    checkpoint: Checkpoint, source: Checkpoint, architecture: Architecture, *, untied: bool
) -> Iterator[str]:
    """Fields of config.json that make another model of the weights than the source's."""
    ours, theirs = dict(checkpoint.config), dict(source.config)
    tied = architecture.is_tied(theirs) and not untied
    if architecture.is_tied(ours) != tied:
        yield f"{CONFIG}: {TIED} is {architecture.is_tied(ours)}, {tied} was expected"
    skipped = {TIED, *NOT_ARCHITECTURE}
    for key in sorted((ours.keys() | theirs.keys()) - skipped):
        if ours.get(key) != theirs.get(key):
            yield f"{CONFIG}: {key} is {ours.get(key)!r}, the source has {theirs.get(key)!r}"[:300]
