"""How the product of many tokens is divided, and what it is compiled to; no GPU."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.kernel import SINCE, Device
from slideconvert.kernels.few_tokens.prepared import Order
from slideconvert.kernels.many_tokens.kernel import ManyTokens, refusal
from slideconvert.kernels.many_tokens.launches import FOLDER
from slideconvert.kernels.many_tokens.tiles import FORMS, PIECE_COLUMNS, PORTABLE, Tiling, Wgmma
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.disassembled import TARGETS, cuobjdump, instructions

H200, ADA = 232448, 101376
LENGTHS = (4, 6, 8, 10, 12, None)
SIZES = [(64, 64), (4608, 5376), (37888, 5376), (3584, 28416), (152064, 8192)]
GPUS = {"A100": Device(108, 166912, (8, 0)), "L40S": Device(142, 101376, (8, 9)), "H200": Device(132, 232448, (9, 0))}
CUDA = torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "of", lambda device: GPUS["H200"])


@pytest.mark.parametrize("length", LENGTHS)
def test_rings_fit_and_run_as_far_ahead_as_they_can(length: int | None) -> None:
    unit = Order.of(length).unit
    for form in FORMS:

        def taken(stages: int, units: int, form: Wgmma = form) -> int:
            """By the layout of rings.cuh and epilogue.cuh."""
            slabs = units * form.warpgroups * 4 * unit.warp_bytes
            outputs = form.warpgroups * 2 * (16 * 128 + 4 * form.tokens)
            return 1024 + stages * form.tokens * 128 + slabs + outputs + 512

        fitted = form.fitted(unit, H200)
        assert fitted is not None
        stages, units = fitted.constants["STAGES"], fitted.constants["UNITS"]
        assert fitted.shared_bytes == taken(stages, units) <= H200 and stages >= 3
        assert 8 * 2 * (stages + units) <= 512
        pieces = unit.columns // PIECE_COLUMNS
        fits = [(some, many) for some in range(1, 13) for many in range(2, 20) if taken(some, many) <= H200]
        assert min(stages, (units - 1) * pieces) == max(min(some, (many - 1) * pieces) for some, many in fits)
        assert form.fitted(unit, 64 * form.tokens) is None  # not one piece
    (portable,) = PORTABLE
    fitted = portable.fitted(unit, ADA)
    assert fitted is not None and fitted.shared_bytes <= ADA and fitted.constants["STAGES"] == 3


@pytest.mark.parametrize("gpu", GPUS)
def test_every_pattern_has_a_form_for_any_number_of_tokens(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "of", lambda device: GPUS[gpu])
    for length in LENGTHS:
        for rows, columns in SIZES:
            op = ManyTokens(SlideSpec(rows, columns, length, torch.int8), CUDA)
            for tokens in (1, 65, 1000, 16384, 200_000):
                tiling = op.tiling(tokens)
                form = tiling.form
                assert isinstance(form, Wgmma) == (gpu == "H200")
                assert tiling.clusters > 0
                assert tiling.clusters * form.cluster <= 132 or not isinstance(form, Wgmma)
                assert tiling.row_tiles * form.rows >= rows > (tiling.row_tiles - 1) * form.rows
                assert tiling.token_tiles * form.tokens >= tokens


def test_tiles_that_leave_the_gpu_idle_are_not_chosen(hopper: None) -> None:
    """qkv of Qwen2.5-7B, 1,024 tokens: of 128 rows and 256 tokens there are 144 tiles, a second round for 12."""
    op = ManyTokens(SlideSpec(4608, 3584, 4, torch.int8), CUDA)
    chosen = op.tiling(1024)
    assert chosen.cycles == min(op.tiled(1024, form).cycles for form in op.forms)
    busy = chosen.row_tiles * chosen.token_tiles * chosen.form.cluster
    assert busy > 0.7 * -(-busy // 132) * 132, chosen


def test_large_products_take_the_largest_tiles(hopper: None) -> None:
    for length in (4, 8):
        op = ManyTokens(SlideSpec(37888, 3584, length, torch.int8), CUDA)
        form = op.tiling(16384).form
        assert form.tokens * form.rows // form.cluster >= 128 * 256


def test_tilings_count_from_the_padded_weight() -> None:
    tiling = Tiling(200, 1000, 300, Order.of(8).unit, Wgmma(128, 2, 2, rate=1.0), 132)
    assert (tiling.units, tiling.row_tiles, tiling.token_tiles, tiling.clusters) == (3, 1, 3, 3)


def test_a_last_round_that_leaves_the_gpu_idle_has_two_clusters_for_each_tile() -> None:
    """down of Qwen2.5-7B, 4,096 tokens: 224 tiles for 66 clusters, of which 26 are left after three rounds."""
    form = Wgmma(256, 2, 2, rate=0.5)
    tiling = Tiling(3584, 18944, 4096, Order.of(4).unit, form, 132)
    assert (tiling.tiles, tiling.clusters, tiling.halved, tiling.exchanges) == (224, 66, 26, 26 * 4)
    assert tiling.cycles < 4 * form.tile(18944)
    assert Tiling(3584, 18944, 16384, Order.of(4).unit, form, 132).halved == 0  # 38 are left: more than half
    assert Tiling(3584, 1024, 4096, Order.of(4).unit, form, 132).halved == 0  # the exchange would take longer
    assert Tiling(3584, 18944, 256, Order.of(4).unit, form, 132).halved == 0  # 14 tiles: the first round is the last


def test_what_cannot_run_is_refused() -> None:
    spec = SlideSpec(64, 64, 8, torch.int8)
    assert refusal(spec, (9, 0)) == refusal(spec, (8, 0)) == refusal(spec, (12, 0)) == ""
    assert "needs compute capability 8.9" in refusal(SlideSpec(64, 64, 8, torch.float8_e4m3fn), (8, 6))
    assert "K = 68 is no multiple of 8" in refusal(SlideSpec(64, 68, 8, torch.int8), (9, 0))


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.skipif(cuobjdump() is None, reason="Triton carries no cuobjdump here")
@pytest.mark.parametrize(
    ("length", "form", "codes", "dtype", "bias"),
    [
        (4, FORMS[0], torch.int8, torch.bfloat16, None),
        (4, FORMS[1], torch.float8_e4m3fn, torch.bfloat16, None),
        (6, FORMS[0], torch.int8, torch.bfloat16, torch.bfloat16),
        (8, FORMS[1], torch.float8_e4m3fn, torch.float16, torch.float16),
        (8, FORMS[5], torch.int8, torch.float32, torch.float32),
        (10, FORMS[1], torch.float8_e4m3fn, torch.float32, None),
        (12, FORMS[2], torch.int8, torch.bfloat16, None),
    ],
)  # fmt: skip
def test_products_run_ahead(
    hopper: None,
    length: int,
    form: Wgmma,
    codes: torch.dtype,
    dtype: torch.dtype,
    bias: torch.dtype | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between products no register is kept in memory, and the tensor cores are not waited for after every one: where
    registers are short, the compiler makes them wait without a word."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    op = ManyTokens(SlideSpec(4608, 3584, length, codes), CUDA)
    pieces = op.order.unit.columns // PIECE_COLUMNS
    code = nvrtc.machine_code(FOLDER / form.source, op.constants(dtype, bias, form), "sm_90a")
    body = instructions(code, "product", tmp_path)
    loop = body[body.index("GMMA") : body.rindex("GMMA")]
    assert "MEMBAR" not in loop  # releases to other blocks of a cluster wait for nothing
    assert body.count("GMMA") == 3 * 2 * pieces  # of even units, odd units, and the last one
    assert body.count("WARPGROUP.DEPBAR") == 3 * pieces + 1
    assert "STL" not in loop and "LDL" not in loop
    # What is released is overwritten at once, so nothing may still be loaded from it: products have taken it before.
    order = re.findall(r"LDS\.128|GMMA|SYNCS\.ARRIVE", loop)
    assert ("LDS.128", "SYNCS.ARRIVE") not in set(pairwise(order))


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.parametrize("target", TARGETS)
def test_every_generation_compiles(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Device, "of", lambda device: Device(100, 101376, TARGETS[target]))
    for length, codes, dtype in ((8, torch.int8, torch.bfloat16), (6, torch.float8_e4m3fn, torch.float32)):
        if SINCE[codes] > TARGETS[target]:
            continue
        op = ManyTokens(SlideSpec(4096, 3584, length, codes), CUDA, forms=PORTABLE)
        for form in op.forms:
            constants = op.constants(dtype, torch.bfloat16, form)
            assert nvrtc.machine_code(FOLDER / form.source, constants, target)[:4] == b"\x7fELF"
