"""Grouped weights: the stored bytes of both layouts pinned, compared with compressed-tensors, damaged, read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slideconvert.kernels.group_spec import BITS, SIZES, GroupSpec
from slideconvert.kernels.groups import DenseGroups, Groups, pack, pack_dense, unpack, unpack_dense


def hex_of(tensor: Tensor) -> str:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes().hex(" ")


def random_weight(spec: GroupSpec, share: float, seed: int = 0) -> tuple[GroupSpec, Tensor, Tensor, Tensor, Tensor]:
    """codes, scale, zero, keep with about this share of groups kept, and the spec that says how many."""
    generator = torch.Generator().manual_seed(seed)
    small = (spec.rows, spec.across)
    keep = torch.rand(small, generator=generator) < share
    zero = torch.randint(spec.largest + 1, small, generator=generator, dtype=torch.uint8)
    zero.masked_fill_(~keep | spec.symmetric, spec.middle)
    stored = torch.randint(spec.largest + 1, (*small, spec.size), generator=generator, dtype=torch.int16)
    codes = ((stored - zero[..., None]) * keep[..., None]).to(spec.codes_dtype).view(spec.rows, spec.columns)
    scale = torch.randn(small, generator=generator).bfloat16().masked_fill(~keep, 1)
    return replace(spec, kept=int(keep.sum())), codes, scale, zero, keep


PAPER = GroupSpec(rows=4, columns=8, size=4, bits=4, kept=4, symmetric=False)


def paper() -> Groups:
    """The example of the paper: rows of 1, 2, 0 and 1 groups, sixteen values."""
    keep = torch.tensor([[0, 1], [1, 1], [0, 0], [0, 1]]).bool()
    stored = torch.zeros(4, 2, 4, dtype=torch.int16)
    stored[keep] = torch.arange(16, dtype=torch.int16).view(4, 4)
    zero = torch.tensor([[8, 0], [5, 15], [8, 8], [8, 2]], dtype=torch.uint8)
    codes = ((stored - zero[..., None]) * keep[..., None]).to(torch.int8).view(4, 8)
    scale = torch.tensor([[7, 1], [0.5, -2], [7, 7], [7, 3]], dtype=torch.bfloat16)
    return pack(codes, scale, zero, keep, PAPER)


def test_the_bytes_of_the_example_of_the_paper() -> None:
    groups = paper()
    assert groups.row_index.tolist() == [0, 1, 3, 3, 4] and groups.row_index.dtype == torch.int32
    assert groups.groups.tolist() == [1, 0, 1, 1] and groups.groups.dtype == torch.int16
    assert hex_of(groups.values) == "10 32 54 76 98 ba dc fe" and groups.values.shape == (4, 2)
    assert hex_of(groups.scale) == "80 3f 00 3f 00 c0 40 40"
    assert groups.zero is not None and hex_of(groups.zero) == "50 2f"


def test_bytes_of_eight_bits_and_of_an_odd_number_of_zero_points() -> None:
    spec = GroupSpec(1, 12, 4, 8, 2, False)
    codes = torch.tensor([[0, 1, 2, 3, 0, 0, 0, 0, -250, 5, 0, -1]], dtype=torch.int16)
    keep, zero = torch.tensor([[True, False, True]]), torch.tensor([[16, 0, 250]], dtype=torch.uint8)
    groups = pack(codes, torch.ones(1, 3, dtype=torch.bfloat16), zero, keep, spec)
    assert groups.zero is not None and hex_of(groups.zero) == "10 fa"
    assert hex_of(groups.values) == "10 11 12 13 00 ff fa f9"
    spec, *weight = random_weight(GroupSpec(3, 4, 4, 4, 0, False), 2.0)
    packed = pack(*weight, spec).zero
    assert packed is not None and packed.shape == (2,) and int(packed[1]) <= 15


SPECS = st.builds(
    lambda rows, across, size, bits, symmetric: GroupSpec(rows, across * size, size, bits, 0, symmetric),
    st.integers(1, 9), st.integers(1, 9), st.sampled_from(SIZES), st.sampled_from(BITS), st.booleans(),
)  # fmt: skip


@given(SPECS, st.sampled_from([0.0, 0.3, 0.7, 2.0]), st.integers(0, 1000))
@settings(deadline=None)
def test_both_layouts_give_back_what_they_were_given(spec: GroupSpec, share: float, seed: int) -> None:
    spec, codes, scale, zero, keep = random_weight(spec, share, seed)
    groups = pack(codes, scale, zero, keep, spec)
    for found, expected in zip(unpack(groups, spec), (codes, scale, zero, keep), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert sum(tensor.nbytes for tensor in groups.named().values()) == spec.stored_bytes()
    assert torch.equal(Groups.of(groups.named()).values, groups.values)
    dense = pack_dense(codes, scale, zero, spec)
    for found, expected in zip(unpack_dense(dense, spec), (codes, scale, zero), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert sum(tensor.nbytes for tensor in dense.named().values()) == spec.stored_bytes("dense")


@given(SPECS, st.integers(0, 1000))
@settings(deadline=None)
def test_the_dense_layout_is_that_of_compressed_tensors(spec: GroupSpec, seed: int) -> None:
    spec, codes, scale, zero, _ = random_weight(spec, 2.0, seed)
    dense = pack_dense(codes, scale, zero, spec)
    signed = (codes.short() + zero.repeat_interleave(spec.size, 1) - spec.middle).to(torch.int8)
    assert torch.equal(dense.packed, pack_to_int32(signed, spec.bits))
    assert torch.equal(unpack_from_int32(dense.packed, spec.bits, signed.shape), signed)
    if spec.symmetric:
        assert dense.zero is None
    else:
        packed = pack_to_int32((zero.short() - spec.middle).to(torch.int8), spec.bits, packed_dim=0)
        assert dense.zero is not None and torch.equal(dense.zero, packed) and dense.zero.is_contiguous()


def put(tensor: Tensor | None, place: int, value: int) -> Tensor:
    assert tensor is not None
    tensor = tensor.clone()
    tensor.view(-1)[place] = value
    return tensor


DAMAGE: dict[str, Callable[[Groups], Groups]] = {
    "goes from 1 to 4": lambda g: replace(g, row_index=put(g.row_index, 0, 1)),
    "goes from 0 to 5": lambda g: replace(g, row_index=put(g.row_index, 4, 5)),
    "falls from 3 to 2 at row 2": lambda g: replace(g, row_index=put(g.row_index, 3, 2)),
    r"weight_groups\[1\] is 2, a row has 2": lambda g: replace(g, groups=put(g.groups, 1, 2)),
    r"weight_groups\[3\] is -1": lambda g: replace(g, groups=put(g.groups, 3, -1)),
    "has 1 then 1 at 1": lambda g: replace(g, groups=put(g.groups, 1, 1)),
    r"weight_values is torch.uint8 \[4, 1\], not torch.uint8 \[4, 2\]": lambda g: replace(g, values=g.values[:, :1]),
    "weight_groups is torch.int32": lambda g: replace(g, groups=g.groups.int()),
    r"weight_scale is torch.bfloat16 \[3\]": lambda g: replace(g, scale=g.scale[:3]),
    "weight_scale has 1 that are not finite": lambda g: replace(g, scale=put(g.scale, 2, torch.nan)),  # type: ignore[arg-type]
    "weight_zero_point were expected": lambda g: replace(g, zero=None),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damage_is_found(words: str) -> None:
    with pytest.raises(ValueError, match=f"^4x8 W4A16 g4 asymmetric S50.0%: .*{words}"):
        unpack(DAMAGE[words](paper()), PAPER)


def test_damage_of_padding_and_of_the_dense_layout_is_found() -> None:
    spec, codes, scale, zero, keep = random_weight(GroupSpec(3, 4, 4, 4, 0, False), 2.0)
    groups = pack(codes, scale, zero, keep, spec)
    with pytest.raises(ValueError, match="weight_zero_point has 1 in the nibble of padding"):
        unpack(replace(groups, zero=put(groups.zero, 1, 16 | int(groups.zero[1]))), spec)  # type: ignore[index]
    dense = pack_dense(codes, scale, zero, spec)
    for words, damaged in {
        "weight_packed has bits in the padding beyond 4": replace(dense, packed=put(dense.packed, 0, 1 << 16)),
        "weight_zero_point has bits in the padding beyond 3": replace(dense, zero=put(dense.zero, 0, 1 << 12)),
        r"weight_shape is \[3, 8\]": replace(dense, shape=put(dense.shape, 1, 8)),
        "weight_packed is torch.int64": DenseGroups(dense.packed.long(), dense.scale, dense.zero, dense.shape),
    }.items():
        with pytest.raises(ValueError, match=words):
            unpack_dense(damaged, spec)


def test_what_cannot_be_packed_is_refused() -> None:
    spec, codes, scale, zero, keep = random_weight(GroupSpec(4, 16, 4, 4, 0, False), 0.5)
    for words, weight in {
        "1 absent groups have codes that are not 0": (codes, scale, zero, keep & (keep.cumsum(0).cumsum(1) != 1)),
        "no zero points": (codes, scale, None, keep),
        "codes is torch.int16": (codes.short(), scale, zero, keep),
        "scale is torch.float32": (codes, scale.float(), zero, keep),
        "a zero point of 16, the largest is 15": (codes, scale, torch.full_like(zero, 16), keep),
        "stored codes of": (codes, scale, zero ^ 15, keep),
    }.items():
        with pytest.raises(ValueError, match=words):
            pack(*weight, spec)
    with pytest.raises(ValueError, match=f"keep has {spec.kept} groups, {spec.kept - 1} were expected"):
        pack(codes, scale, zero, keep, replace(spec, kept=spec.kept - 1))
    with pytest.raises(ValueError, match="symmetric, with zero points that are not 8"):
        pack(codes, scale, zero, keep, replace(spec, symmetric=True))
    for words, changed in {
        "size is 5, known": {"size": 5}, "18 columns must be": {"columns": 18}, "bits is 3": {"bits": 3},
        "17 groups kept of 16": {"kept": 17}, "activation_bits is 4": {"activation_bits": 4},
        "1 to 32768 groups": {"columns": 4 * 32769}, "0x16": {"rows": 0, "kept": 0},
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            replace(spec, **changed)
    with pytest.raises(ValueError, match="unknown layout 'slide'"):
        replace(spec, layout="slide")
