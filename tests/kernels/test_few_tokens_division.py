"""What of the product of few tokens can be checked without a GPU: the division of work, fragments, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.division import (
    HOLDING,
    MOST_UNITS,
    STREAMING,
    Division,
    Form,
    divisions,
    most_exchanged,
)
from slideconvert.kernels.few_tokens.kernel import DENSE_WARP_UNIT, SOURCE
from slideconvert.kernels.few_tokens.prepared import WARP_UNIT, from_fragments, to_fragments
from slideconvert.kernels.windows import pack, slid_columns, slide

H200, ADA = 232448 - 4096, 101376 - 4096
"""Shared memory of a block that is left for the product."""


@given(
    rows=st.integers(1, 5000),
    columns=st.integers(1, 20000),
    blocks=st.integers(1, 200),
    form=st.sampled_from([*HOLDING, *STREAMING]),
)
@settings(max_examples=200, deadline=None)
def test_every_unit_has_one_block_and_every_part_a_place(rows: int, columns: int, blocks: int, form: Form) -> None:
    division = Division(rows, columns, 16, WARP_UNIT, blocks, form)
    total = division.tiles * division.units
    assert division.begin(0) == 0 and division.begin(division.blocks) == total
    assert (division.tiles - 1) * form.tile_rows < rows <= division.tiles * form.tile_rows
    owners: dict[int, list[int]] = {}
    for block in range(division.blocks):
        begin, end = division.begin(block), division.begin(block + 1)
        assert begin < end
        assert {division.block_of(place) for place in (begin, end - 1)} == {block}
        assert form.stream or min(end - begin, division.units) <= division.held
        for tile in range(begin // division.units, (end - 1) // division.units + 1):
            owners.setdefault(tile, []).append(block)
    assert sorted(owners) == list(range(division.tiles))
    for tile, found in owners.items():
        first = division.block_of(tile * division.units)
        assert found == list(range(first, first + len(found)))
        assert len(found) <= division.parts
    assert max(len(found) for found in owners.values()) == division.parts
    # as Parts::place of sums.cuh
    cut = [found for found in owners.values() if len(found) > 1]
    places = [found[0] + (part or division.blocks) for found in cut for part in range(len(found))]
    assert len(set(places)) == len(places) and bool(places) == (division.exchanged > 0)
    assert (max(places, default=-1) + 1) * division.part <= division.exchanged <= most_exchanged(blocks)


@pytest.mark.parametrize("free", [H200, ADA], ids=["H200", "Ada"])
@pytest.mark.parametrize("warp_unit", [WARP_UNIT, DENSE_WARP_UNIT], ids=["sparse", "dense"])
def test_a_form_fits_for_every_number_of_tokens(free: int, warp_unit: int) -> None:
    for rows, columns in [(64, 64), (3584, 28416), (37888, 5376), (152064, 8192), (8192, 200000)]:
        for padded in (8, 16, 32, 64):
            fitting = [one for one in divisions(rows, columns, padded, warp_unit, 132) if one.fits(free)]
            assert fitting, (rows, columns, padded)
            assert fitting[0].shared_bytes <= free
            assert fitting[0].form.stream or fitting[0].held <= MOST_UNITS


def test_weights_with_more_places_than_32_bits_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        Division(64 * 2**14, 256 * 2**12, 8, WARP_UNIT, 132, HOLDING[0])


def slow_fragments(slid: torch.Tensor) -> list[list[int]]:
    """For tile 0, unit 0: what each warp's lane holds, from the figures of mma.sp.m16n8k64 in the PTX manual."""
    out = []
    for warp in range(4):
        for step in range(4):
            for lane in range(32):
                g, q = divmod(lane, 4)
                values = []
                for window_half in (0, 1):
                    for high in (0, 1):
                        row = slid[warp * 16 + g + 8 * high, step * 64 : step * 64 + 64].view(16, 4)
                        for window in (8 * window_half + 2 * q, 8 * window_half + 2 * q + 1):
                            kept = [int(v) for v in row[window] if v]
                            kept = kept if len(kept) == 2 else [*kept, 0, 0][:2]
                            values += kept
                out.append(values)
    return out


def test_fragments_are_what_the_instruction_takes() -> None:
    generator = torch.Generator().manual_seed(0)
    slid = torch.zeros(64, 256, dtype=torch.int8)
    for window in slid.view(-1, 4):  # two values in every window, so that their order is that of the columns
        places = torch.randperm(4, generator=generator)[:2]
        window[places] = torch.randint(1, 127, (2,), dtype=torch.int8, generator=generator)
    values, meta = pack(slid)
    fragments = to_fragments(values, meta)
    found = fragments[0, 0, :, :2048].view(torch.int8).reshape(4 * 4 * 32, 16).tolist()
    # A lane's bytes are [window half][row half][window][value]; registers a0, a1 are rows g, g + 8 of the first half.
    assert found == slow_fragments(slid)
    words = fragments[0, 0, :, 2048:].reshape(4, 32, 4, 4)
    for warp, lane, step in [(0, 0, 0), (1, 5, 2), (3, 31, 3), (2, 14, 1), (2, 15, 0)]:
        g, q = divmod(lane, 4)
        row = warp * 16 + g + 8 * (q % 2)
        first = step * 8 + 4 * (q // 2)
        assert torch.equal(words[warp, lane, step], meta[row, first : first + 4])


@pytest.mark.parametrize("length", [4, 6, 8, 10, 16, None])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (63, 200), (130, 1040)])
def test_fragments_come_back(length: int | None, rows: int, columns: int) -> None:
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    if length:
        order = torch.rand(rows, -(-columns // length), length).argsort(-1)
        codes[(order < 2).flatten(1)[:, :columns]] = 0
    values, meta = pack(slide(codes, length))
    fragments = to_fragments(values, meta)
    back = from_fragments(fragments, rows, slid_columns(columns, length))
    assert torch.equal(back[0].view(torch.int8), values) and torch.equal(back[1], meta)


KIND = {
    "SPARSE": 1, "LENGTH": 8, "FLOAT": 0, "TILES": 2, "GROUPS": 2, "STAGES": 4, "ROW_GROUPS": 1, "STREAM": 0, "X": 0,
    "BIAS": 3, "HELD": 1, "WARPGROUP": 0,
}  # fmt: skip


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
def test_every_generation_compiles(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    floats = (0,) if target in ("sm_80", "sm_86") else (0, 1)
    streaming = {"STREAM": 1, "ROW_GROUPS": 2, "TILES": 8, "X": 2, "BIAS": 2, "SPARSE": 0, "LENGTH": 0}
    for number in floats:
        for form in ({}, streaming):
            kind = {**KIND, **form, "FLOAT": number, "WARPGROUP": int(target == "sm_90a")}
            assert nvrtc.machine_code(SOURCE, kind, target)[:4] == b"\x7fELF"
