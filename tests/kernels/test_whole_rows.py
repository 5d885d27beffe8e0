"""Blocks that have whole rows, in the product of few tokens: the division of rows, what its threads do, compilation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slideconvert.kernels import nvrtc
from slideconvert.kernels.bench_common import MODELS
from slideconvert.kernels.few_tokens.division import (
    MOST_SLABS,
    SLAB_ROWS,
    Division,
    Form,
    ceil_div,
    whole,
)
from slideconvert.kernels.few_tokens.kernel import DENSE_UNIT, SOURCE, Device, FewTokens
from slideconvert.kernels.few_tokens.prepared import Order
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.disassembled import cuobjdump, instructions

UNITS = {**{f"2:{length}": Order.of(length).unit for length in (4, 6, 8, 10, 12)}, "dense": DENSE_UNIT}
H200 = 232448 - 4096
"""Shared memory of a block that is left for the product."""
CUDA = torch.device("cuda", 0)


def of_whole_rows(rows: int, columns: int, padded: int, blocks: int) -> Division:
    slabs = ceil_div(ceil_div(rows, SLAB_ROWS), blocks)
    form = Form(ceil_div(slabs, 4), 3, stream=True, cluster=1, slabs=slabs)
    return Division(rows, columns, padded, UNITS["2:4"], blocks, form)


def rows_of(division: Division, block: int) -> range:
    first, end = (division.first_slab(one) * SLAB_ROWS for one in (block, block + 1))
    return range(first, min(end, division.rows))


@given(rows=st.integers(1, 50000), columns=st.integers(1, 20000), blocks=st.integers(1, 200))
@settings(max_examples=200, deadline=None)
def test_every_row_has_one_block(rows: int, columns: int, blocks: int) -> None:
    division = of_whole_rows(rows, columns, 16, blocks)
    assert division.fits(2**40)
    owned = [rows_of(division, block) for block in range(division.blocks)]
    assert [row for one in owned for row in one] == list(range(rows))
    slabs = [ceil_div(len(one), SLAB_ROWS) for one in owned]
    assert max(slabs) == division.form.slabs and min(slabs) >= max(1, division.form.slabs - 1)
    assert division.form.groups * 4 - 4 < division.form.slabs <= division.form.groups * 4
    for block in range(division.blocks):  # all columns, as the loop of kernel.cu finds them
        assert division.begin(block) == block * division.units
    assert division.share == division.units and division.parts == 1 and division.exchanged == 0
    codes = division.unit.columns * 16
    copied = division.units * (division.form.slabs * division.unit.warp_bytes + codes)
    assert division.cost == copied


@given(
    rows=st.integers(1, 3000),
    blocks=st.integers(1, 12),
    padded=st.sampled_from([8, 16, 32, 64]),
    unfilled=st.integers(0, 7),
)
@settings(max_examples=100, deadline=None)
def test_threads_gather_and_write_every_sum_once(rows: int, blocks: int, padded: int, unfilled: int) -> None:
    """As `gather` and `deliver` of sums.cuh."""
    division = of_whole_rows(rows, 64, padded, blocks)
    form, tokens = division.form, padded - unfilled
    assume(form.groups <= 6)
    threads, quads, stride = form.groups * 128, form.tile_rows // 4, form.tile_rows + 4
    writers = threads // quads * quads
    written: dict[tuple[int, int], int] = {}
    for block in range(division.blocks):
        first, end = (division.first_slab(one) for one in (block, block + 1))
        gathered: dict[int, tuple[int, int]] = {}
        for warp in range(end - first):
            for i in range(4 * (padded // 8)):
                banks = set()
                for lane in range(32):
                    token, row = i // 4 * 8 + lane % 4 * 2 + i % 2, warp * SLAB_ROWS + lane // 4 + i // 2 % 2 * 8
                    assert token * stride + row not in gathered
                    gathered[token * stride + row] = token, first * SLAB_ROWS + row
                    banks.add((token * stride + row) % 32)
                assert len(banks) == 32
        assert 4 * max(gathered) < division.shared_bytes
        for thread in range(writers):
            row = thread % quads * 4
            for n in range(ceil_div(padded * quads, writers)):
                i = n * writers + thread
                if i >= tokens * quads or row >= (end - first) * SLAB_ROWS:
                    continue
                for k in range(4):
                    at = i // quads, first * SLAB_ROWS + row + k
                    assert gathered[i // quads * stride + row + k] == at
                    if at[1] < rows:
                        written[at] = written.get(at, 0) + 1
    assert written == dict.fromkeys(((token, row) for token in range(tokens) for row in range(rows)), 1)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("padded", [8, 16, 32, 64])
def test_rings_fit_and_are_as_deep_as_they_can_be(unit: str, padded: int) -> None:
    for rows in (17000, 22016, 27648, 37888, 132 * 16 * MOST_SLABS):
        fitting = [one for one in whole(rows, 3584, padded, UNITS[unit], 132) if one.fits(H200)]
        assert fitting, rows
        form, stage = fitting[0].form, fitting[0].shared_bytes // fitting[0].form.stages
        assert form.slabs == ceil_div(ceil_div(rows, 16), 132) and form.stages >= 3
        assert fitting[0].shared_bytes == stage * form.stages <= H200
        assert stage == form.slabs * fitting[0].unit.warp_bytes + fitting[0].unit.columns * padded
        assert form.stages == 6 or stage * (form.stages + 1) > H200
        if fitting[0].unit != UNITS[unit]:  # halves, only where three whole units do not fit
            assert 3 * (form.slabs * UNITS[unit].warp_bytes + UNITS[unit].columns * padded) > H200


def test_they_are_for_linears_of_so_many_rows_that_a_block_has_more_than_one_warpgroup() -> None:
    for rows in (64, 4608, 7168, 132 * 64, 132 * 16 * MOST_SLABS + 1, 152064):
        assert not list(whole(rows, 3584, 64, UNITS["2:4"], 132)), rows


@pytest.mark.parametrize("model", MODELS)
def test_they_are_not_chosen_elsewhere(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by mma: products of FP8 on compute capability 9.0 would not have enough registers."""
    for rows, columns in MODELS[model].values():
        for device, warpgroup in ((Device(148, 232448, (10, 0)), None), (Device(132, 232448, (9, 0)), False)):
            monkeypatch.setattr(Device, "of", lambda _, device=device: device)
            op = FewTokens(SlideSpec(rows, columns, 8, torch.int8), CUDA, warpgroup=warpgroup)
            assert not any(op.division(tokens).form.slabs for tokens in (8, 16, 32, 64))


@pytest.mark.parametrize(
    ("length", "tokens", "slabs", "columns"),
    [(4, 64, 18, 256), (6, 32, 18, 256), (8, 64, 18, 192), (10, 64, 18, 256), (4, 16, 18, 256), (8, 8, 18, 384)],
)
def test_gate_up_of_a_large_model(
    length: int, tokens: int, slabs: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2:8 and 64 tokens three whole units do not fit."""
    monkeypatch.setattr(Device, "of", lambda device: Device(132, 232448, (9, 0)))
    op = FewTokens(SlideSpec(*MODELS["Qwen2.5-7B"]["gate_up"], length, torch.int8), CUDA)
    found = op.division(tokens)
    assert (found.form.slabs, found.unit.columns) == (slabs, columns)
    constants = op.constants(torch.bfloat16, None, found)
    assert constants["UNIT"] * constants["HALVES"] == op.unit.columns
    assert constants["METADATA"] * constants["HALVES"] == op.order.metadata


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.skipif(cuobjdump() is None, reason="Triton carries no cuobjdump here")
@pytest.mark.parametrize("unit", ["2:4", "2:6", "2:8", "2:10", "dense"])
@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_registers_suffice_for_the_largest_blocks(
    unit: str, codes: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Device, "of", lambda device: Device(132, 232448, (9, 0)))
    dense = unit == "dense"
    op = FewTokens(SlideSpec(37888, 3584, 8 if dense else int(unit[2:]), codes), CUDA, dense=dense)
    for tokens, dtype, bias in (
        (8, torch.bfloat16, None),
        (64, torch.bfloat16, None),
        (64, torch.float32, torch.float32),
    ):
        fitting = [one for one in whole(37888, op.columns, tokens, op.unit, 132) if one.fits(H200)]
        for division in {one.unit: one for one in fitting}.values():
            code = nvrtc.machine_code(SOURCE, op.constants(dtype, bias, division), "sm_90a")
            body = instructions(code, "product", tmp_path)
            assert not re.search(r"\b(STL|LDL)\b", body)
            assert body.count("GMMA") == division.unit.columns // (32 if dense else 64)
            assert body.count("WARPGROUP.DEPBAR") == 1
            assert "MUFU.RCP" not in body[body.index("GMMA") : body.index("WARPGROUP.DEPBAR")]  # no divisions
