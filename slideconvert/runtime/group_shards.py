"""What a tensor-parallel rank holds of linears with scales for groups of columns, and several of them as one.

A rank has some rows of a column-parallel linear, and the groups of its columns of a row-parallel one; groups are never
cut. What it has is put together again as a linear of its own: block sparse rows where groups are absent, pack-quantized
where none is. Both layouts of a checkpoint give the same bytes, and so the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.groups import Groups, GroupSpec, Weight, kept_groups, pack, pack_dense, unpack, unpack_dense


@dataclass(frozen=True)
class Piece:
    """codes [n, k], scale, zero and keep [n, k / G] of n rows and k columns, as kernels/groups.py has them."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    keep: Tensor


def cut(weight: Weight, spec: GroupSpec, rows: slice, columns: slice) -> Piece:
    """The rows and columns of one rank; `columns` are whole groups. spec: of the whole linear; its kept groups are
    those of the pattern, whatever the layout. ValueError if the weight is damaged, or has more groups than that."""
    if isinstance(weight, Groups):
        codes, scale, zero, keep = unpack(weight, spec)
    else:
        codes, scale, zero = unpack_dense(weight, replace(spec, kept=spec.whole))
        keep = kept_groups(codes, spec)
    across = slice(columns.start // spec.size, columns.stop // spec.size)
    small = (tensor[rows, across].contiguous() for tensor in (scale, zero, keep))
    return Piece(codes[rows, columns].contiguous(), *small)


def join(pieces: Sequence[Piece], spec: GroupSpec) -> tuple[GroupSpec, Weight]:
    """Pieces of the same columns, one below the other, as one linear. spec: of any of the linears they are cut from."""
    codes, scale, zero, keep = (
        torch.cat([getattr(piece, name) for piece in pieces]) for name in ("codes", "scale", "zero", "keep")
    )
    spec = replace(spec, rows=codes.shape[0], columns=codes.shape[1], kept=int(keep.sum()))
    if spec.kept == spec.whole:
        return spec, pack_dense(codes, scale, zero, spec)
    return spec, pack(codes, scale, zero, keep, spec)
