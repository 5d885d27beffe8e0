"""What of the product of few tokens can be checked without a GPU: the division of work, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.division import (
    CLUSTERED,
    HOLDING,
    MOST_UNITS,
    STREAMING,
    Division,
    Form,
    clustered,
    divisions,
    most_exchanged,
)
from slideconvert.kernels.few_tokens.kernel import DENSE_UNIT, SINCE, SOURCE, Device, FewTokens
from slideconvert.kernels.few_tokens.prepared import Order
from slideconvert.kernels.slide_spec import SlideSpec

UNITS = {"2:4": Order.of(4).unit, "2:8": Order.of(8).unit, "dense": DENSE_UNIT}
H200, ADA = 232448 - 4096, 101376 - 4096
"""Shared memory of a block that is left for the product."""


@given(
    rows=st.integers(1, 5000),
    columns=st.integers(1, 20000),
    blocks=st.integers(1, 200),
    form=st.sampled_from([*HOLDING, *STREAMING, *CLUSTERED]),
)
@settings(max_examples=200, deadline=None)
def test_every_unit_has_one_block_and_every_part_a_place(rows: int, columns: int, blocks: int, form: Form) -> None:
    division = Division(rows, columns, 16, UNITS["2:4"], blocks, form)
    total = division.tiles * division.units
    assume(form.cluster <= division.units)
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
    if form.cluster:  # a tile of its own for each
        clusters = [list(range(first, first + form.cluster)) for first in range(0, division.blocks, form.cluster)]
        assert list(owners.values()) == clusters and division.exchanged == 0
        return
    # as Parts::place of sums.cuh
    cut = [found for found in owners.values() if len(found) > 1]
    places = [found[0] + (part or division.blocks) for found in cut for part in range(len(found))]
    assert len(set(places)) == len(places) and bool(places) == (division.exchanged > 0)
    assert (max(places, default=-1) + 1) * division.part <= division.exchanged <= most_exchanged(blocks)


@pytest.mark.parametrize("free", [H200, ADA], ids=["H200", "Ada"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_form_fits_for_every_number_of_tokens(free: int, unit: str) -> None:
    for rows, columns in [(64, 64), (3584, 28416), (37888, 5376), (152064, 8192), (8192, 200000)]:
        for padded in (8, 16, 32, 64):
            fitting = [one for one in divisions(rows, columns, padded, UNITS[unit], 132) if one.fits(free)]
            assert fitting, (rows, columns, padded)
            assert fitting[0].shared_bytes <= free
            assert fitting[0].form.stream or fitting[0].held <= MOST_UNITS
            assert fitting[0].form.stages > 3 or fitting[0].form.stream or rows * columns < 2**25


@pytest.mark.parametrize(
    ("rows", "columns", "padded", "cluster"),
    [
        (3584, 5376, 64, 4),
        (4608, 5376, 64, 3),
        (37888, 5376, 64, 0),
        (3584, 28416, 64, 4),
        (16384, 3072, 64, 1),
        (64, 64, 64, 0),
    ],
)
def test_linears_of_few_rows_are_divided_among_clusters(rows: int, columns: int, padded: int, cluster: int) -> None:
    """Of many tokens, as long as clusters find room and have enough units; never of few."""
    shape = (rows, columns, padded, UNITS["2:8"], 132)
    equal = next(one for one in divisions(*shape) if one.fits(H200))
    fitting = [one for one in clustered(*shape) if one.fits(H200)]
    assert min((equal, *fitting), key=lambda one: one.cost).form.cluster == cluster
    for one in fitting:
        size = one.form.cluster
        assert one.tiles <= (8 * (16 // size) if size > 1 else 132)  # parts of 16 multiprocessors, and some more
        assert one.shared_bytes <= H200 and one.blocks <= 132 and one.form.cluster <= one.units and one.exchanged == 0
    assert not list(clustered(rows, columns, 16, UNITS["2:8"], 132))


def test_weights_with_more_places_than_32_bits_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        Division(64 * 2**14, 256 * 2**12, 8, UNITS["2:4"], 132, HOLDING[0])


TARGETS = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_89": (8, 9), "sm_90a": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0)}


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.parametrize("target", TARGETS)
def test_every_generation_compiles(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What few and many tokens take there, of every kind of metadata, INT8 and FP8."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shared = 232448 if target in ("sm_90a", "sm_100") else 166912 if target == "sm_80" else 101376
    monkeypatch.setattr(Device, "of", lambda device: Device(128, shared, TARGETS[target]))
    codes = [dtype for dtype, since in SINCE.items() if since <= TARGETS[target]]
    for number, (length, dense) in enumerate(((4, False), (6, False), (8, False), (10, False), (4, True))):
        spec = SlideSpec(4096, 3584, length, codes[number % len(codes)])
        op = FewTokens(spec, torch.device("cuda", 0), dense=dense)
        assert op.warpgroup == (target == "sm_90a")
        for tokens, dtype, bias in ((8, torch.bfloat16, None), (64, torch.float32, torch.float32)):
            constants = op.constants(dtype, bias, op.division(tokens))
            assert nvrtc.machine_code(SOURCE, constants, target)[:4] == b"\x7fELF"
