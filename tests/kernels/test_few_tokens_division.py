"""What of the product of few tokens can be checked without a GPU: the division of work, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slideconvert.kernels import nvrtc
from slideconvert.kernels.bench_common import MODELS
from slideconvert.kernels.few_tokens.division import (
    CLUSTERED,
    HOLDING,
    MOST_UNITS,
    STREAMING,
    Division,
    Form,
    clustered,
    divisions,
    most_clusters,
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
    ("model", "linear", "length", "tokens", "form"),
    [
        ("Qwen2.5-7B", "o", 8, 64, "streamed by clusters of 4"),
        ("Qwen2.5-7B", "qkv", 8, 64, "streamed by clusters of 3"),
        ("Qwen2.5-7B", "gate_up", 8, 64, "whole rows"),
        ("Qwen2.5-7B", "o", 4, 32, "streamed by clusters of 4"),
        ("Qwen2.5-7B", "qkv", 4, 32, "streamed by clusters of 3"),
        ("Qwen2.5-7B", "gate_up", 4, 1, "whole rows"),
        ("Qwen2.5-7B", "down", 8, 16, "streamed by clusters of 4"),
        ("Qwen2.5-7B", "down", 4, 1, "held"),
        ("Qwen2.5-7B", "down", 8, 1, "held"),
        ("Qwen2.5-7B", "o", 8, 16, "streamed by clusters of 4"),
        ("Llama-3.2-1B", "o", 4, 1, "streamed by clusters of 4"),
        ("Llama-3.2-1B", "qkv", 8, 1, "streamed by clusters of 4"),
        ("Llama-3.2-1B", "o", 8, 64, "streamed by clusters of 4"),
        ("Llama-2-7B", "gate_up", 8, 64, "whole rows"),
        ("Llama-2-7B", "qkv", 8, 64, "whole rows"),
        ("BitNet-2B", "gate_up", 8, 64, "whole rows"),
        ("Llama-3.2-1B", "qkv", 8, 32, "streamed by clusters of 4"),
        ("Llama-3.2-1B", "gate_up", 4, 1, "streamed by clusters of 1"),
    ],
)
def test_the_fastest_measured_forms_are_chosen(
    model: str, linear: str, length: int, tokens: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H200 all others that were measured took as long or longer, parts that are published up to 2.5 times."""
    monkeypatch.setattr(Device, "of", lambda device: Device(132, 232448, (9, 0)))
    spec = SlideSpec(*MODELS[model][linear], length, torch.int8)
    found = FewTokens(spec, torch.device("cuda", 0)).division(tokens).form
    way = ("streamed" if found.stream else "held") + f" by clusters of {found.cluster}" * bool(found.cluster)
    assert ("whole rows" if found.slabs else way) == form


@pytest.mark.parametrize(("rows", "columns"), [(3584, 5376), (37888, 5376), (16384, 3072), (64, 64)])
@pytest.mark.parametrize("padded", [8, 64])
def test_clusters_fit_the_gpu(rows: int, columns: int, padded: int) -> None:
    for one in clustered(rows, columns, padded, UNITS["2:8"], 132):
        if one.fits(H200):
            assert one.tiles <= most_clusters(132, one.form.cluster) and one.form.cluster <= one.units
            assert one.shared_bytes <= H200 and one.blocks <= 132 and one.exchanged == 0


@pytest.mark.parametrize(
    ("size", "together", "too_many"),
    [(1, 132, 133), (2, 64, 67), (3, 36, 40), (4, 28, 32), (5, 18, 24), (6, 16, 23), (7, 14, 16), (8, 14, 16)],
)
def test_clusters_find_room_as_on_an_h200(size: int, together: int, too_many: int) -> None:
    """So many ran together there; too many took twice as long, or are more than its multiprocessors."""
    assert together <= most_clusters(132, size) < too_many


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
