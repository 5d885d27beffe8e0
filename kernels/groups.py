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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .packing import packed_bytes, packed_words, unpacked_bytes, unpacked_words

if TYPE_CHECKING:
    from .group_spec import GroupSpec


@dataclass(frozen=True)
class Groups:
    """The tensors of layout gqs."""

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
    _check_codes(codes, scale, zero, keep, spec)
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


def check(groups: Groups, spec: GroupSpec) -> None:
    """ValueError for tensors that no such linear has: shapes, dtypes, rows that do not follow one another, groups
    beyond the row, twice or out of order, scales that are no numbers, bits in the padding."""
    _check_tensors(groups.named(), spec, "gqs")
    starts, index = groups.row_index, groups.groups
    if int(starts[0]) != 0 or int(starts[-1]) != spec.kept:
        raise ValueError(
            f"{spec}: weight_row_index goes from {int(starts[0])} to {int(starts[-1])}, not from 0 to {spec.kept}"
        )
    falls = starts.diff() < 0
    if falls.any():
        row = int(falls.nonzero()[0])
        raise ValueError(
            f"{spec}: weight_row_index falls from {int(starts[row])} to {int(starts[row + 1])} at row {row}"
        )
    outside = (index < 0) | (index >= spec.across)
    if outside.any():
        place = int(outside.nonzero()[0])
        raise ValueError(f"{spec}: weight_groups[{place}] is {int(index[place])}, a row has {spec.across} groups")
    descends = index.diff() <= 0
    descends[starts[(starts > 0) & (starts < spec.kept)].long() - 1] = False
    if descends.any():
        place = int(descends.nonzero()[0])
        pair = f"{int(index[place])} then {int(index[place + 1])}"
        raise ValueError(f"{spec}: weight_groups has {pair} at {place}, they must ascend within a row")
    if groups.zero is not None and spec.bits == 4 and spec.kept % 2 and int(groups.zero[-1]) > spec.largest:
        raise ValueError(f"{spec}: weight_zero_point has {int(groups.zero[-1]) >> 4} in the nibble of padding")


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
    _check_codes(codes, scale, zero, None, spec)
    zeros = None if zero is None else zero.flatten()
    stored = _stored(codes.view(-1, spec.size), zeros, spec).view(spec.rows, spec.columns)
    packed = None if spec.symmetric or zero is None else packed_words(zero.T, spec.bits).T.contiguous()
    shape = torch.tensor([spec.rows, spec.columns], device=codes.device)
    return DenseGroups(packed_words(stored, spec.bits), scale.contiguous(), packed, shape)


def unpack_dense(dense: DenseGroups, spec: GroupSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Layout dense -> codes [N, K], scale and zero [N, K/G]. ValueError for shapes, dtypes, scales that are no
    numbers, a weight_shape that is another, bits in the padding."""
    _check_tensors(dense.named(), spec, "dense")
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


def _check_codes(codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor | None, spec: GroupSpec) -> None:
    small = (spec.rows, spec.across)
    expected = [("codes", codes, (spec.rows, spec.columns), spec.codes_dtype), ("scale", scale, small, torch.bfloat16)]
    if zero is not None:
        expected.append(("zero", zero, small, torch.uint8))
    elif not spec.symmetric:
        raise ValueError(f"{spec}: no zero points, and they are not symmetric")
    if keep is not None:
        expected.append(("keep", keep, small, torch.bool))
    for name, tensor, shape, dtype in expected:
        _check_tensor(name, tensor, shape, dtype, spec)


def _check_tensors(named: dict[str, Tensor], spec: GroupSpec, layout: str) -> None:
    wanted = spec.tensors(layout)
    if named.keys() != wanted.keys():
        raise ValueError(f"{spec}: tensors {', '.join(sorted(named))}; {', '.join(sorted(wanted))} were expected")
    for name, (shape, dtype) in wanted.items():
        _check_tensor(name, named[name], shape, dtype, spec)
    if not named["weight_scale"].isfinite().all():
        raise ValueError(
            f"{spec}: weight_scale has {int((~named['weight_scale'].isfinite()).sum())} that are not finite"
        )


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, spec: GroupSpec) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{spec}: {name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")


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
