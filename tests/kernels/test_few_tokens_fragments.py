"""Fragments of sparse weights, read as the kernel reads them: what lanes hold and what metadata they make of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slideconvert.kernels.few_tokens.prepared import PAIRS, Order
from slideconvert.kernels.few_tokens.zeros import compact, expand, positions
from slideconvert.kernels.slide_spec import SlideSpec, SlideWeight
from slideconvert.kernels.windows import group_of
from tests.helpers.linears import default_dtype

CPU = torch.device("cpu")
LENGTHS = [4, 6, 8, 10, 12, 16, None]
ONES = 0x11111111


def weight(rows: int, columns: int, length: int | None, dtype: torch.dtype = torch.int8) -> SlideWeight:
    """Two zeros at random places in most blocks, more in some."""
    codes = torch.randint(-127, 127, (rows, columns), dtype=torch.int8)
    if length:
        order = torch.rand(rows, -(-columns // length), length).argsort(-1)
        codes[(order < 2).flatten(1)[:, :columns]] = 0
    codes[torch.rand(rows, columns) < 0.05] = 0
    return SlideWeight(SlideSpec(rows, columns, length, dtype), torch.ones(rows, 1), dense=codes.view(dtype))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (63, 200), (130, 1040)])
def test_fragments_come_back(length: int | None, dtype: torch.dtype, rows: int, columns: int) -> None:
    made, order = weight(rows, columns, length, dtype), Order.of(length)
    with default_dtype(torch.bfloat16):
        fragments = order.fragments(made, CPU)
    assert fragments.shape == (-(-rows // 64), order.units(made.spec), 4, order.unit.warp_bytes)
    back = order.weight(made.spec, fragments, made.scale)
    assert torch.equal(back.dense.view(torch.int8), made.dense.view(torch.int8))


def permuted(low: int, high: int, selectors: int) -> int:
    """prmt.b32, from the PTX manual."""
    source = (low | high << 32).to_bytes(8, "little")
    out = []
    for i in range(4):
        selector = selectors >> 4 * i & 15
        byte = source[selector & 7]
        out.append((255 if byte & 128 else 0) if selector & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def words_of(order: Order, stored: bytes) -> list[int]:
    """The words of metadata of a lane, one for each step, as metadata.cuh makes them."""
    held = [int.from_bytes(stored[i : i + 4], "little") for i in range(0, len(stored), 4)]
    if order.length == 6:
        table, out = [order.constants[f"TABLE_{i}"] for i in range(4)], []
        for word in held:
            for half in (word, word >> 16):
                low, high = half & 0x7777, half & 0x8888
                mask = permuted(0x80, 0, high)
                out.append(permuted(*table[2:], low) & mask | permuted(*table[:2], low) & ~mask & 0xFFFFFFFF)
        return out
    if not order.bounds:
        return held
    out = []
    for i in range(0, len(held), 2):
        for j in range(order.windows):
            even = sum((~(n + (7 - 2 * j) * ONES) & 8 * ONES) >> 3 for n in held[i : i + 2])
            odd = sum((~(n + (6 - 2 * j) * ONES) & 8 * ONES) >> 1 for n in held[i : i + 2])
            out.append(4 * ONES + even + odd)
    return out


def column_of(order: Order, place: int) -> int:
    """Of the window at a place, as metadata.cuh finds it."""
    block, windows = group_of(order.length)
    if order.bounds:
        return (place // 16 // windows * 16 + place % 16) * block + place // 16 % windows * 2
    return place // windows * block + place % windows * 2


def multiplied(order: Order, fragments: Tensor, columns: int) -> Tensor:
    """The dense weight that the tensor cores multiply: [tiles * 64, columns], by the figures of mma.sp.m16n8k64."""
    tiles, units = fragments.shape[:2]
    dense = torch.zeros(tiles * 64, columns, dtype=torch.int64)
    for tile, unit, warp in torch.cartesian_prod(torch.arange(tiles), torch.arange(units), torch.arange(4)).tolist():
        part = fragments[tile, unit, warp]
        lanes = part[order.steps * 512 :].view(32, order.metadata)
        words = [words_of(order, bytes(lane.tolist())) for lane in lanes]
        for step in range(order.steps):
            values = part[step * 512 : step * 512 + 512].view(torch.int8).view(32, 2, 2, 2, 2).tolist()
            for lane in range(32):
                g, q = divmod(lane, 4)
                for half in (0, 1):
                    for high in (0, 1):
                        nibbles = words[4 * g + 2 * half + high][step]  # of the lane that provides it
                        for second in (0, 1):
                            window = 2 * q + second
                            nibble = nibbles >> 4 * window & 15
                            assert (nibble & 3) < nibble >> 2, "positions must ascend"
                            place = (unit * order.steps + step) * 16 + 8 * half + window
                            for value, position in zip(
                                values[lane][half][high][second], (nibble & 3, nibble >> 2), strict=True
                            ):
                                if value:
                                    row = tile * 64 + warp * 16 + g + 8 * high
                                    dense[row, column_of(order, place) + position] += value
    return dense


@pytest.mark.parametrize("length", LENGTHS)
def test_the_tensor_cores_multiply_the_weight(length: int | None) -> None:
    made, order = weight(70, 600, length), Order.of(length)
    found = multiplied(order, order.fragments(made, CPU), 600)
    assert torch.equal(found[:70], made.dense.long()) and not found[70:].any()


def test_the_number_of_a_pair_of_zeros_chooses_its_positions() -> None:
    """All that a 2:6 block can store: the highest bit of both halves of the table must agree."""
    order = Order.of(6)
    for number, (a, b) in enumerate(PAIRS.tolist()):
        expected = positions(a, b, 0) | positions(a, b, 1) << 4
        assert words_of(order, bytes([number, 0, 0, 0])[:4] + bytes(4))[0] & 255 == expected


@given(length=st.sampled_from([6, 8, 10]), data=st.data())
@settings(max_examples=50, deadline=None)
def test_kept_columns_and_zeros_give_the_block(length: int, data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 4))
    codes = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=blocks * length, max_size=blocks * length)))
    codes = codes.to(torch.int8).view(1, -1)
    if int((codes.view(blocks, length) == 0).sum(1).min()) < 2:
        with pytest.raises(ValueError, match="fewer than two zeros"):
            compact(codes, length)
        return
    kept, first, second = compact(codes, length)
    assert torch.equal(expand(kept, first, second, length), codes)
    for block, (a, b) in enumerate(zip(first[0].tolist(), second[0].tolist(), strict=True)):
        zeros = [i for i in range(length) if codes[0, block * length + i] == 0][:2]
        assert [a, b + 1] == zeros
        for window in range(length // 2 - 1):
            nibble = positions(a, b, window)
            columns = [i for i in range(length) if i not in zeros][2 * window : 2 * window + 2]
            assert [2 * window + (nibble & 3), 2 * window + (nibble >> 2)] == columns
