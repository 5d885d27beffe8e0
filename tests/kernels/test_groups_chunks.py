"""What every lane of the kernel of grouped weights reads of a chunk and multiplies, lane by lane as the .cuh files
address it: with the fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16") it gives the product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.group_gemm.prepared import LANES, SLAB, UNIT, Layout
from slideconvert.kernels.group_spec import SIZES, GroupSpec
from slideconvert.kernels.groups import decode

from .test_groups_linear import made


def word(chunk: bytes, at: int) -> int:
    return int.from_bytes(chunk[at : at + 4], "little")


def half(bits: int) -> float:
    """A float16 that is subnormal."""
    assert 0 <= bits < 1 << 10
    return bits * 2.0**-24


def zero_point(group: int, lay: Layout) -> int:
    return (group & 0xFFFF) >> lay.zero_bit if lay.placed else group & 0xFFFF


def scaled(piece: bytes, group: int, lay: Layout) -> list[tuple[float, float]]:
    """`scaled` of tensor_cores.cuh, without rounding: two halves for each a[i], times 2^24."""
    bits, columns, zero = lay.spec.bits, lay.piece, zero_point(group, lay)
    scale = torch.tensor(group >> 16, dtype=torch.int32).short().view(torch.bfloat16).item()
    out = []
    for i in range(columns // 4):
        if bits == 8:
            codes = int.from_bytes(piece[4 * i : 4 * i + 4], "little")
            pairs, shift = [codes & 0x00FF00FF, codes >> 8 & 0x00FF00FF], (1, 1)
        else:
            codes = int.from_bytes(piece, "little")
            if columns == 4:
                codes = codes & 0xFF | (codes >> 8) << 16
            else:
                codes = (codes >> (i // 2 * 32) & 0xFFFFFFFF) >> (8 if i % 2 else 0)
            pairs, shift = [codes & 0x000F000F, codes & 0x00F000F0], (1, 16)
        for pair, power in zip(pairs, shift, strict=True):
            low, high = half(pair & 0xFFFF) / power, half(pair >> 16) / power
            out.append(tuple((one * 2.0**24 - zero) * scale for one in (low, high)))
    return out  # type: ignore[return-value]


def fragments(lay: Layout, chunk: bytes) -> Tensor:
    """[steps, mmas, 2 times 16 rows, lane, 4 registers, 2 halves] of the operand A."""
    steps, mmas = lay.masks // 4, lay.piece // 4
    out = torch.zeros(steps, mmas, 2, LANES, 4, 2, dtype=torch.float64)
    pieces, groups = lay.pieces_at, word(chunk, 0)
    for step in range(steps):
        for rows in range(4):
            mask = word(chunk, 16 + 4 * (step * 4 + rows))
            for lane in range(LANES):
                bits = mask << (31 - lane) & 0xFFFFFFFF
                count, exists = bits.bit_count(), bool(bits >> 31)
                at = pieces + (count - 1) * lay.piece_bytes
                group = word(chunk, groups + (count - 1 >> lay.share) * 4) if exists else 0
                a = scaled(chunk[at : at + lay.piece_bytes], group, lay)
                for i in range(mmas):  # registers 0 and 2 are of row g, 1 and 3 of row g + 8
                    for j in range(2):
                        out[step, i, rows // 2, lane, rows % 2 + 2 * j] = torch.tensor(a[2 * i + j])
            pieces += mask.bit_count() * lay.piece_bytes
            groups += (mask.bit_count() >> lay.share) * 4
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """mma.m16n8k16: registers a [lane, 4, 2], b [lane, 2, 2] -> sums [16, 8]."""
    rows, columns = torch.zeros(16, 16, dtype=a.dtype), torch.zeros(16, 8, dtype=a.dtype)
    for lane in range(LANES):
        g, q = lane // 4, lane % 4
        for register in range(4):
            for i in range(2):
                rows[g + register % 2 * 8, 2 * q + i + register // 2 * 8] = a[lane, register, i]
        for register in range(2):
            for i in range(2):
                columns[2 * q + i + register * 8, g] = b[lane, register, i]
    return rows @ columns


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_lanes_of_a_chunk_multiply_the_weight(size: int, bits: int) -> None:
    spec, weight = made(GroupSpec(40, size * (256 // size + 1), size, bits, 0, False), "gqs")
    lay = Layout(spec)
    chunks, offsets, factor, room = lay.build(weight)
    assert offsets.diff().max() * 16 <= room.shape[1]
    codes, scale = decode(weight, spec)
    dense = codes.double() * scale.double().repeat_interleave(size, 1)
    largest = scale.float().abs().mul(codes.view(*scale.shape, -1).ne(0).any(-1)).amax(1)
    assert (largest * factor[: spec.rows] < 2.0**15).all() and factor.log2().frac().eq(0).all()
    x = torch.randn(8, lay.units * UNIT, dtype=torch.float64)
    x[:, spec.columns :] = 0
    found = torch.zeros(8, lay.slabs * SLAB, dtype=torch.float64)
    for number in range(lay.slabs * lay.units):
        slab, unit = divmod(number, lay.units)
        chunk = bytes(chunks[offsets[number] * 16 : offsets[number + 1] * 16].tolist())
        a = fragments(lay, chunk)
        for step in range(lay.masks // 4):
            for i in range(lay.piece // 4):
                b = torch.zeros(LANES, 2, 2, dtype=torch.float64)
                for lane in range(LANES):  # a lane's token and columns: `own` and b of tensor_cores.cuh
                    first = unit * UNIT + step * 4 * lay.piece + lane % 4 * lay.piece + 4 * i
                    b[lane] = x[lane // 4, first : first + 4].view(2, 2)
                for rows in range(2):
                    at = slab * SLAB + rows * 16
                    found[:, at : at + 16] += product(a[step, i, rows], b).T
    assert torch.allclose(found[:, : spec.rows], x[:, : spec.columns] @ dense.T, rtol=1e-9, atol=1e-9)
    assert (found[:, spec.rows :] == 0).all()


def few_terms(lay: Layout, chunk: bytes, x: Tensor) -> Tensor:
    """What `multiply` of few.cuh leaves in the slots of a chunk, without rounding: [512], times what it leaves out."""
    slots = torch.zeros(512, dtype=torch.float64)
    parts = torch.tensor([1.0, 16.0, 1.0, 16.0] if lay.spec.bits == 4 else [1.0] * 4, dtype=x.dtype)
    halves = (x.view(-1, 4, 2) / parts[:, None]).view(-1, 2)
    groups, wide, before = word(chunk, 0), 1 << lay.share, [word(chunk, 4 * i) for i in (1, 2, 3)]
    count = (groups - lay.pieces_at) // lay.piece_bytes
    for first in range(0, count, 32):
        for lane in range(32):
            rank = min(first, max(count, 32) - 32) + min(lane, count - 1)
            group = word(chunk, groups + (rank >> lay.share) * 4)
            if lay.spec.bits == 4:
                place = group & 0x7FC
            else:
                place = group << 1 & 0x7C | group << 3 & 0x600 | sum(rank >= one for one in before) << 7
            place |= rank % wide * 0x20
            scale = torch.tensor(group >> 16, dtype=torch.int32).short().view(torch.bfloat16).item()
            piece, zero, total = lay.pieces_at + rank * lay.piece_bytes, zero_point(group, lay) * 2.0**-24, 0.0
            for i in range(8):
                if lay.spec.bits == 4:
                    times = 16 if i % 2 else 1
                    pair = word(chunk, piece + i // 4 * 4) >> i % 4 // 2 * 8 & 0x000F000F * times
                else:
                    times, pair = 1, word(chunk, piece + i // 2 * 4) >> i % 2 * 8 & 0x00FF00FF
                x_pair = halves[(place & 0x1E0) // 4 + i]  # of two bytes each
                for code, by in zip((pair & 0xFFFF, pair >> 16), x_pair, strict=True):
                    total += (half(code) - zero * times) * float(by) * 2.0**24
            slots[place // 4] = scale * total
    return slots


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("share", [0.5, 0.02, 1.0])
@pytest.mark.parametrize("size", [16, 32, 128])
def test_lanes_multiply_pieces_one_after_another(size: int, share: float, bits: int) -> None:
    """Of one or two tokens: every piece has a slot of its own, where the lane of its row adds it up."""
    spec, weight = made(GroupSpec(40, size * (256 // size + 1), size, bits, 0, False), "gqs", share)
    lay = Layout(spec)
    assert lay.placed
    chunks, offsets, _, _ = lay.build(weight)
    codes, scale = decode(weight, spec)
    dense = codes.double() * scale.double().repeat_interleave(size, 1)
    x = torch.randn(lay.units * UNIT, dtype=torch.float64)
    x[spec.columns :] = 0
    found = torch.zeros(lay.slabs * SLAB, dtype=torch.float64)
    for number in range(lay.slabs * lay.units):
        slab, unit = divmod(number, lay.units)
        chunk = bytes(chunks[offsets[number] * 16 : offsets[number + 1] * 16].tolist())
        slots = few_terms(lay, chunk, x[unit * UNIT : (unit + 1) * UNIT])
        for lane in range(LANES):  # `add_up`
            row = lane % 8 * 4 + lane // 8 * 512
            for j in range(4):
                for step in range(4):
                    found[slab * SLAB + lane] += slots[(row + step * 128 + (j ^ lane // 8) * 0x20) // 4]
    assert torch.allclose(found[: spec.rows], dense @ x[: spec.columns], rtol=1e-9, atol=1e-9)
    assert (found[spec.rows :] == 0).all()
