"""Weights quantized by groups of columns, of which some may be absent: the two layouts of a checkpoint; plain torch.

A group is G columns of a row. Each one that exists has codes of b bits, a scale and an integer zero point; a weight
is (stored - zero) * scale. In memory: codes [N, K] = stored - zero, int8 for 4 bits and int16 for 8, exactly 0 where a
group is absent; scale [N, K/G] bfloat16; zero [N, K/G] uint8; keep [N, K/G] bool.

Layout gqs: the block sparse rows of GQSA (arXiv 2412.17560, §3.2), n being the groups that exist.

    row_index  int32 [N+1]          where each row's groups begin; the last is n
    groups     int16 [n]            which group of its row, ascending
    values     uint8 [n, G*b/8]     stored codes; of 4 bits two a byte, lower column in the low nibble
    scale      bfloat16 [n]
    zero       uint8 [ceil(n*b/8)]  of 4 bits two a byte, low nibble first; None if symmetric: 2^(b-1)

    rows of 1, 2, 0 and 1 groups (the paper's example): row_index 0 1 3 3 4, groups 1 0 1 1

Layout dense: pack-quantized of compressed-tensors, every group there.

    packed     int32 [N, ceil(K*b/32)]    stored codes, lowest column in the lowest bits
    scale      bfloat16 [N, K/G]
    zero       int32 [ceil(N*b/32), K/G]  lowest row in the lowest bits; None if symmetric
    shape      int64 [2]                  N, K
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .group_checks import check, check_codes, check_tensors
from .packing import packed_bytes, packed_words, unpacked_bytes, unpacked_words

if TYPE_CHECKING:
    from .group_spec import GroupSpec


@dataclass(frozen=True)
class Groups:
    """The tensors of layout gqs."""

    layout: ClassVar[str] = "gqs"

    row_index: Tensor
    groups: Tensor
    values: Tensor
    scale: Tensor
    zero: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """By the names in a checkpoint."""
        out = {"weight_row_index": self.row_index, "weight_groups": self.groups, "weight_values": self.values}
        return {**out, "weight_scale": self.scale, **({} if self.zero is None else {"weight_zero_point": self.zero})}

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> Groups:
        """The inverse of `named`; other tensors are left alone."""
        row_index, groups = named["weight_row_index"], named["weight_groups"]
        return cls(row_index, groups, named["weight_values"], named["weight_scale"], named.get("weight_zero_point"))


@dataclass(frozen=True)
class DenseGroups:
    """The tensors of layout dense."""

    layout: ClassVar[str] = "dense"

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    shape: Tensor

    def named(self) -> dict[str, Tensor]:
        """By the names in a checkpoint."""
        out = {"weight_packed": self.packed, "weight_scale": self.scale, "weight_shape": self.shape}
        return out if self.zero is None else {**out, "weight_zero_point": self.zero}

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> DenseGroups:
        """The inverse of `named`; other tensors are left alone."""
        zero = named.get("weight_zero_point")
        return cls(named["weight_packed"], named["weight_scale"], zero, named["weight_shape"])


def pack(codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor, spec: GroupSpec) -> Groups:
    """codes, scale, zero and keep as this module describes them (zero may be None if symmetric) -> layout gqs.

    What scale and zero say of absent groups is forgotten. ValueError if `keep` is not of spec.kept groups, an absent
    group has a code that is not 0, or codes and zero points do not fit the bits.
    """
    check_codes(codes, scale, zero, keep, spec)
    absent = codes.view(spec.rows, spec.across, spec.size).ne(0).any(-1) & ~keep
    if absent.any():
        raise ValueError(f"{spec}: {int(absent.sum())} absent groups have codes that are not 0")
    counts = keep.sum(1)
    row_index = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    if int(row_index[-1]) != spec.kept:
        raise ValueError(f"{spec}: keep has {int(row_index[-1])} groups, {spec.kept} were expected")
    there = keep.flatten().nonzero().squeeze(1)
    zeros = None if zero is None else zero.flatten()[there]
    stored = _stored(codes.view(-1, spec.size)[there], zeros, spec)
    packed = None if spec.symmetric or zeros is None else packed_bytes(zeros, spec.bits)
    groups = (there % spec.across).short()
    return Groups(row_index, groups, packed_bytes(stored, spec.bits), scale.flatten()[there], packed)


def unpack(groups: Groups, spec: GroupSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layout gqs -> codes, scale, zero, keep; absent groups have codes 0, scale 1, zero 2^(b-1). ValueError for
    damage, as `check` finds it."""
    check(groups, spec)
    there = places(groups, spec)
    zeros = zero_points(groups, spec)
    device = groups.values.device
    codes = torch.zeros(spec.whole, spec.size, dtype=spec.codes_dtype, device=device)
    codes[there] = (unpacked_bytes(groups.values, spec.bits).short() - zeros[:, None]).to(spec.codes_dtype)
    scale = torch.ones(spec.whole, dtype=torch.bfloat16, device=device)
    zero = torch.full((spec.whole,), spec.middle, dtype=torch.uint8, device=device)
    keep = torch.zeros(spec.whole, dtype=torch.bool, device=device)
    scale[there], zero[there], keep[there] = groups.scale, zeros, True
    small = (spec.rows, spec.across)
    return codes.view(spec.rows, spec.columns), scale.view(small), zero.view(small), keep.view(small)


def places(groups: Groups, spec: GroupSpec) -> Tensor:
    """[n] int64: row * K/G + group of every group that exists, ascending."""
    rows = torch.arange(spec.rows, device=groups.groups.device)
    counts = groups.row_index.diff().long()
    return rows.repeat_interleave(counts, output_size=spec.kept) * spec.across + groups.groups.long()


def zero_points(groups: Groups, spec: GroupSpec) -> Tensor:
    """[n] uint8, the zero point of every group that exists."""
    if groups.zero is None:
        return torch.full((spec.kept,), spec.middle, dtype=torch.uint8, device=groups.values.device)
    return unpacked_bytes(groups.zero, spec.bits)[: spec.kept]


def pack_dense(codes: Tensor, scale: Tensor, zero: Tensor | None, spec: GroupSpec) -> DenseGroups:
    """codes, scale and zero as this module describes them (zero may be None if symmetric) -> layout dense.
    ValueError if codes and zero points do not fit the bits."""
    check_codes(codes, scale, zero, None, spec)
    zeros = None if zero is None else zero.flatten()
    stored = _stored(codes.view(-1, spec.size), zeros, spec).view(spec.rows, spec.columns)
    packed = None if spec.symmetric or zero is None else packed_words(zero.T, spec.bits).T.contiguous()
    shape = torch.tensor([spec.rows, spec.columns], device=codes.device)
    return DenseGroups(packed_words(stored, spec.bits), scale.contiguous(), packed, shape)


def unpack_dense(dense: DenseGroups, spec: GroupSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Layout dense -> codes [N, K], scale and zero [N, K/G]. ValueError for shapes, dtypes, scales that are no
    numbers, a weight_shape that is another, bits in the padding."""
    check_tensors(dense, spec)
    if dense.shape.tolist() != [spec.rows, spec.columns]:
        raise ValueError(f"{spec}: weight_shape is {dense.shape.tolist()}")
    stored = unpacked_words(dense.packed, spec.bits, spec.columns, f"{spec}: weight_packed")
    zero = torch.full((spec.rows, spec.across), spec.middle, dtype=torch.uint8, device=stored.device)
    if dense.zero is not None:
        zero = unpacked_words(
            dense.zero.T.contiguous(), spec.bits, spec.rows, f"{spec}: weight_zero_point"
        ).T.contiguous()
    codes = stored.view(*zero.shape, spec.size).short() - zero[..., None]
    return codes.to(spec.codes_dtype).view(spec.rows, spec.columns), dense.scale, zero


Weight = Groups | DenseGroups


def decode(weight: Weight, spec: GroupSpec) -> tuple[Tensor, Tensor]:
    """Either layout -> codes [N, K], scale [N, K/G]. ValueError for damage."""
    if isinstance(weight, Groups):
        return unpack(weight, spec)[:2]
    return unpack_dense(weight, spec)[:2]


def _stored(codes: Tensor, zeros: Tensor | None, spec: GroupSpec) -> Tensor:
    """codes [n, G], zeros [n] -> the stored codes, uint8 [n, G]."""
    if zeros is not None and len(zeros) and (int(zeros.max()) > spec.largest):
        raise ValueError(f"{spec}: a zero point of {int(zeros.max())}, the largest is {spec.largest}")
    if zeros is not None and spec.symmetric and not (zeros == spec.middle).all():
        raise ValueError(f"{spec}: symmetric, with zero points that are not {spec.middle}")
    stored = codes.short() + (spec.middle if zeros is None else zeros[:, None])
    if stored.numel() and not 0 <= int(stored.min()) <= int(stored.max()) <= spec.largest:
        raise ValueError(f"{spec}: stored codes of {int(stored.min())} to {int(stored.max())}, not 0 to {spec.largest}")
    return stored.to(torch.uint8)


def kept_groups(codes: Tensor, spec: GroupSpec) -> Tensor:
    """codes [N, K] -> keep [N, K/G] bool: the groups that are not zero, and of those that are the first ones, until
    there are spec.kept. So codes alone tell which groups layout gqs holds. ValueError if more are not zero."""
    found = codes.reshape(spec.whole, spec.size).ne(0).any(1)
    missing = spec.kept - int(found.sum())
    if missing < 0:
        raise ValueError(f"{spec}: {spec.kept - missing} groups are not zero, {spec.kept} may be")
    keep = found.clone()
    keep[(~found).nonzero()[:missing, 0]] = True
    return keep.view(spec.rows, spec.across)


def canonical(codes: Tensor, scale: Tensor, zero: Tensor | None, spec: GroupSpec) -> tuple[Tensor, Tensor | None]:
    """Scale and zero as they are, but 1 and 2^(b-1) for groups of zeros, of which nothing else is known from either
    layout."""
    empty = ~codes.reshape(spec.rows, spec.across, spec.size).ne(0).any(2)
    plain = scale.masked_fill(empty, 1.0)
    return plain, None if zero is None else zero.masked_fill(empty, spec.middle)
