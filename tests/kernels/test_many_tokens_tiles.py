"""How the product of many tokens is divided, and what it is compiled to; no GPU."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.kernel import STATIC_SHARED, Device
from slideconvert.kernels.few_tokens.prepared import Order
from slideconvert.kernels.many_tokens.kernel import SOURCE, ManyTokens, refusal
from slideconvert.kernels.many_tokens.tiles import BARRIERS, FORMS, LEAST_STAGES, PIECE_COLUMNS, Form, Tiling
from slideconvert.kernels.slide_spec import SlideSpec

H200 = 232448 - STATIC_SHARED
LENGTHS = (4, 6, 8, 10, 12, None)
SIZES = [(64, 64), (4608, 5376), (37888, 5376), (3584, 28416), (152064, 8192)]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "of", lambda device: Device(132, 232448, (9, 0)))


@pytest.mark.parametrize("length", LENGTHS)
def test_rings_fit_and_hold_the_weight_of_their_codes(length: int | None) -> None:
    unit = Order.of(length).unit
    for form in FORMS:
        rings = form.rings(unit, H200)
        if not form.fits(unit):
            continue
        assert rings is not None and rings.shared_bytes <= H200 and rings.stages >= LEAST_STAGES
        assert (rings.units - 1) * unit.columns >= rings.stages * PIECE_COLUMNS
        assert 8 * 2 * (rings.stages + rings.units) <= BARRIERS
        assert form.rings(unit, 64 * form.tokens) is None  # not one piece


def test_every_pattern_has_a_form_for_any_number_of_tokens(hopper: None) -> None:
    for length in LENGTHS:
        for rows, columns in SIZES:
            op = ManyTokens(SlideSpec(rows, columns, length, torch.int8), torch.device("cuda", 0))
            for tokens in (1, 65, 1000, 16384, 200_000):
                tiling = op.tiling(tokens, op.form(tokens))
                assert 0 < tiling.blocks <= 132 and tiling.blocks % tiling.form.cluster == 0
                assert tiling.row_tiles * tiling.form.rows >= rows > (tiling.row_tiles - 1) * tiling.form.rows
                assert tiling.token_tiles * tiling.form.tokens >= tokens


def test_tiles_that_leave_the_gpu_idle_are_not_chosen(hopper: None) -> None:
    """qkv of Qwen2.5-7B, 1,024 tokens: of 128 rows and 256 tokens there are 144 tiles, a second round for 12."""
    op = ManyTokens(SlideSpec(4608, 3584, 4, torch.int8), torch.device("cuda", 0))
    chosen = op.tiling(1024, op.form(1024))
    assert op.tiling(1024, Form(256, 2)).rounds == 2
    assert chosen.cycles == min(op.tiling(1024, form).cycles for form in op.rings)
    share = chosen.row_tiles * chosen.token_tiles / (chosen.rounds * chosen.clusters)
    assert share > 0.7, chosen


def test_large_products_take_the_largest_tiles(hopper: None) -> None:
    for length in (4, 8):
        op = ManyTokens(SlideSpec(37888, 3584, length, torch.int8), torch.device("cuda", 0))
        assert op.form(16384).tokens * op.form(16384).warpgroups >= 512


def test_tilings_count_from_the_padded_weight() -> None:
    tiling = Tiling(200, 1000, 300, Order.of(8).unit, Form(128, 2), 66)
    assert (tiling.units, tiling.row_tiles, tiling.token_tiles, tiling.blocks, tiling.rounds) == (3, 1, 3, 6, 1)


def test_what_cannot_run_is_refused() -> None:
    spec = SlideSpec(64, 64, 8, torch.int8)
    assert refusal(spec, (9, 0)) == ""
    assert "needs compute capability 9.0" in refusal(spec, (8, 9)) and "9.0" in refusal(spec, (10, 0))
    assert "K = 68 is no multiple of 8" in refusal(SlideSpec(64, 68, 8, torch.int8), (9, 0))


def cuobjdump() -> Path | None:
    """The disassembler that Triton carries."""
    triton = importlib.util.find_spec("triton")
    found = Path(triton.origin or "").parent / "backends/nvidia/bin/cuobjdump" if triton else None
    return found if found and found.exists() else None


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.skipif(cuobjdump() is None, reason="Triton carries no cuobjdump here")
@pytest.mark.parametrize(
    ("length", "form", "codes", "dtype", "bias"),
    [
        (4, FORMS[0], torch.int8, torch.bfloat16, None),
        (6, Form(192, 2, 3), torch.int8, torch.bfloat16, torch.bfloat16),
        (8, FORMS[0], torch.float8_e4m3fn, torch.float16, torch.float16),
        (8, Form(64, 1), torch.int8, torch.float32, torch.float32),
        (10, Form(192, 2, 3), torch.float8_e4m3fn, torch.float32, None),
    ],
)  # fmt: skip
def test_products_run_ahead(
    hopper: None,
    length: int,
    form: Form,
    codes: torch.dtype,
    dtype: torch.dtype,
    bias: torch.dtype | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No register is kept in memory, and the tensor cores are not waited for after every product: where registers are
    short, the compiler makes them wait without a word."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    op = ManyTokens(SlideSpec(4608, 3584, length, codes), torch.device("cuda", 0))
    pieces, code = op.order.unit.columns // PIECE_COLUMNS, tmp_path / "code.cubin"
    code.write_bytes(nvrtc.machine_code(SOURCE, op.constants(dtype, bias, form), "sm_90a"))
    listed = subprocess.run([str(cuobjdump()), "-sass", str(code)], capture_output=True, text=True, check=True)
    body = listed.stdout.partition("Function : product")[2].partition("Function :")[0]
    assert body.count("GMMA") == 3 * 2 * pieces  # of even units, odd units, and the last one
    assert body.count("WARPGROUP.DEPBAR") == 3 * pieces + 1
    assert "STL" not in body and "LDL" not in body
