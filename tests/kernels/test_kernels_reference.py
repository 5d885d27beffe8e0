"""The kernels' specifications: quantize per token, lift, multiply with packed windows; against NumPy and exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.core.patterns import LENGTHS, BlockPattern
from slideconvert.kernels.dequant.reference import dequant
from slideconvert.kernels.lift_quant.reference import lift_quant
from slideconvert.kernels.quantize.reference import quantize
from slideconvert.kernels.sparse_gemm import reference as reference_gemm
from slideconvert.kernels.sparse_gemm.reference import prepare, sparse_gemm
from slideconvert.kernels.windows import pack, slide, slide_and_pack, unpack, unslide
from tests.helpers.matrices import raw
from tests.twins import pack as pack_twin
from tests.twins import prune
from tests.twins import quantize as twin
from tests.twins import slide as slide_twin

FP8 = torch.float8_e4m3fn
SCHEMES = {torch.int8: "int8", FP8: "fp8"}
BOTH = pytest.mark.parametrize("dtype", SCHEMES)
E4M3 = np.array([twin.e4m3_value(byte) for byte in range(256)])


def decoded(codes: Tensor) -> NDArray[np.float64]:
    """What codes stand for, exactly."""
    return E4M3[raw(codes).view(np.uint8)] if codes.dtype == FP8 else codes.double().numpy()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pruned_codes(dtype: torch.dtype, rows: int, columns: int, length: int | None) -> Tensor:
    """Random codes of the whole range that follow 2:length; FP8 without -0."""
    rng = np.random.default_rng(columns)
    if dtype == torch.int8:
        codes = torch.from_numpy(rng.integers(-127, 128, (rows, columns), dtype=np.int8))
    else:
        plain = [byte for byte in twin.FINITE if byte != 0x80]
        codes = torch.from_numpy(rng.choice(np.array(plain, dtype=np.uint8), (rows, columns))).view(dtype)
    if length:
        gone = torch.from_numpy(~prune.magnitude(decoded(codes), length))
        codes.view(torch.int8)[gone] = 0
    return codes


# ---- quantize


@BOTH
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1000.0])
def test_quantize_equals_the_twin(dtype: torch.dtype, x_dtype: torch.dtype, size: float) -> None:
    x = (normal(5, 37) * size).to(x_dtype)
    expected_codes, expected_scale = twin.quantize(x.float().numpy(), SCHEMES[dtype])
    codes, scale = quantize(x, dtype)
    assert (codes.dtype, scale.dtype, scale.shape) == (dtype, torch.float32, (5, 1))
    np.testing.assert_array_equal(raw(scale)[:, 0], expected_scale.view(np.int32))
    np.testing.assert_array_equal(decoded(codes), expected_codes if dtype == torch.int8 else E4M3[expected_codes])


def test_halves_round_to_even() -> None:
    """The largest is qmax, so the scale is 1. FP8 has 1 and 1.125 … 1.25 and, below 2^-6, multiples of 2^-9."""
    codes, scale = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5]]), torch.int8)
    assert scale.item() == 1 and codes.tolist() == [[127, 0, 2, 2, 0, -2, 126, -126]]
    codes, scale = quantize(torch.tensor([[448.0, 1.0625, 1.1875, -1.0625, 2.0**-10, 3 * 2.0**-10]]), FP8)
    assert scale.item() == 1 and decoded(codes).tolist() == [[448, 1, 1.25, -1, 0, 2.0**-8]]


@BOTH
def test_quantize_goes_token_by_token_whatever_the_leading_dimensions(dtype: torch.dtype) -> None:
    x = normal(2, 3, 16) * 10.0 ** torch.arange(6).view(2, 3, 1)
    codes, scale = quantize(x, dtype)
    assert (codes.shape, scale.shape) == ((2, 3, 16), (2, 3, 1))
    for first in range(2):
        for second in range(3):
            row_codes, row_scale = quantize(x[first, second], dtype)
            np.testing.assert_array_equal(raw(codes[first, second]), raw(row_codes))
            assert torch.equal(scale[first, second], row_scale)


@BOTH
def test_rows_of_zeros_have_scale_one_and_codes_zero(dtype: torch.dtype) -> None:
    codes, scale = quantize(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), dtype)
    assert scale[0].item() == 1 and not decoded(codes)[0].any()
    assert decoded(codes)[1].tolist() == [{torch.int8: 127, FP8: 448}[dtype], 0]


@BOTH
@pytest.mark.parametrize("absmax", [1e-2, 1e-3, 1e-4, 1e-8, 1e-30, 1e-36])
def test_small_rows_come_back_at_their_size(dtype: torch.dtype, absmax: float) -> None:
    """The published kernels keep the scale above 1 / (512 qmax) but not the codes: x 1.95 at 1e-3, x 19.5 at 1e-4."""
    x = torch.tensor([[1.0, -0.5, 0.25, 0.75]]) * absmax
    codes, scale = quantize(x, dtype)
    qmax, half_gap = {torch.int8: (127, 0.5), FP8: (448, 16)}[dtype]
    step = max(absmax / qmax, 2.0**-126)  # 2^-126 is the smallest normal float32
    error = decoded(codes) * scale.double().numpy() - x.double().numpy()
    assert np.abs(error).max() <= (half_gap + qmax * 2.0**-24) * step  # x / scale is rounded to float32 first


@BOTH
def test_the_largest_of_a_row_gets_the_largest_code(dtype: torch.dtype) -> None:
    """And not the one beyond it, though absmax / scale may come out a rounding above qmax."""
    x = normal(400, 3)
    codes, _ = quantize(torch.cat([x, -x]), dtype)
    assert (np.abs(decoded(codes)).max(axis=1) == {torch.int8: 127, FP8: 448}[dtype]).all()


def test_quantize_leaves_its_input_alone() -> None:
    x = normal(2, 5)
    before = x.clone()
    quantize(x, torch.int8)
    assert torch.equal(x, before)


# ---- lift


@BOTH
@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_lift_quant_is_quantize_and_gather(dtype: torch.dtype, length: int | None) -> None:
    x = normal(6, 43)
    index = slide_twin.lift_index(length, 43)
    lifted, scale = lift_quant(x, length, dtype, rows=8)
    codes, expected_scale = quantize(x, dtype)  # over the 43 columns, not over the lifted ones
    assert torch.equal(scale, expected_scale) and lifted.dtype == dtype and lifted.shape == (8, len(index))
    assert not raw(lifted[6:]).any()
    for place, column in enumerate(index):
        expected = raw(codes[:, column]) if column >= 0 else np.zeros(6, dtype=np.int8)
        np.testing.assert_array_equal(raw(lifted[:6, place]), expected)


# ---- the product


def product(x: Tensor, weight: Tensor, pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    """The sums of lifted codes of x and slid codes of the weight, and the scale of x."""
    codes, scale = lift_quant(x, pattern.length, weight.dtype)
    return sparse_gemm(codes, prepare(unpack(*slide_and_pack(weight, pattern.length))), weight.shape[0]), scale


@pytest.mark.parametrize("length", [*LENGTHS, None])
@pytest.mark.parametrize("columns", [16, 31, 100])
def test_int8_products_are_those_of_integers(length: int | None, columns: int) -> None:
    """Activations that are integers with absmax 127 have scale 1 and are their own codes."""
    rng = np.random.default_rng(columns)
    x = rng.integers(-127, 128, (3, columns))
    x[:, 0] = 127
    weight = pruned_codes(torch.int8, 7, columns, length)
    assert_product(x, weight, BlockPattern(length))


def assert_product(x: NDArray[np.int64], weight: Tensor, pattern: BlockPattern) -> None:
    sums, scale = product(torch.from_numpy(x).float(), weight, pattern)
    assert (scale == 1).all() and sums.dtype == torch.int32
    np.testing.assert_array_equal(sums.numpy(), x @ weight.long().numpy().T)


def test_int8_sums_beyond_float32_are_exact() -> None:
    """Sums near 2^26: adding up in float32 would round."""
    rng = np.random.default_rng(0)
    x = rng.integers(100, 128, (4, 8192))
    x[:, 0] = 127
    weight = torch.from_numpy(rng.integers(100, 128, (64, 8192), dtype=np.int8))
    weight[:, ::4] = weight[:, 1::4] = 0
    assert_product(x, weight, BlockPattern(4))


def test_integer_products_of_devices_without_an_integer_gemm_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that goes through float32, 1024 columns at a time, at the largest magnitudes there are."""
    monkeypatch.setattr(torch, "_int_mm", None)
    codes, weight = torch.full((3, 3000), 127, dtype=torch.int8), torch.full((5, 3000), -127, dtype=torch.int8)
    codes[1, ::7] = -126
    monkeypatch.setattr(reference_gemm, "device_kind", lambda tensor: "other")
    sums = reference_gemm.integer_product(codes, weight)
    np.testing.assert_array_equal(sums.numpy(), codes.long().numpy() @ weight.long().numpy().T)


@pytest.mark.parametrize("rows", [1, 16, 17, 300])
def test_the_faster_of_two_exact_products_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Whichever that is: the same sums. It is measured once for few and once for many rows."""
    generator = torch.Generator().manual_seed(rows)
    codes, weight = (
        torch.randint(-127, 128, (size, 2000), dtype=torch.int8, generator=generator) for size in (rows, 9)
    )
    expected = codes.long().numpy() @ weight.long().numpy().T
    times, ran = {"ints": 1.0, "floats": 1.0}, []

    def run(name: str, real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args: ran.append(name) or real(*args)

    monkeypatch.setattr(torch, "_int_mm", run("ints", torch._int_mm))
    monkeypatch.setattr(reference_gemm, "product_by_floats", run("floats", reference_gemm.product_by_floats))
    monkeypatch.setattr(reference_gemm, "_seconds", lambda product: (product(), times[ran[-1]])[1])
    for winner, loser in (("ints", "floats"), ("floats", "ints")):
        reference_gemm._integers_win.cache_clear()
        times[winner], times[loser] = 1.0, 2.0
        for measured in (True, False):
            ran.clear()
            np.testing.assert_array_equal(reference_gemm.integer_product(codes, weight).numpy(), expected)
            assert ran[-1] == winner and (len(ran) > 1) == measured
    reference_gemm._integers_win.cache_clear()


@pytest.mark.parametrize("length", [*LENGTHS, None])
@pytest.mark.parametrize("columns", [16, 31, 100])
def test_fp8_products_are_those_of_the_decoded_values(length: int | None, columns: int) -> None:
    """Products are exact; each of the at most K' additions rounds a sum of at most sum |x| |w| by 2^-24."""
    pattern, weight = BlockPattern(length), pruned_codes(FP8, 7, columns, length)
    x = normal(3, columns)
    sums, _ = product(x, weight, pattern)
    assert sums.dtype == torch.float32
    codes = decoded(quantize(x, FP8)[0])
    bound = pattern.slid_columns(columns) * 2**-24 * (np.abs(codes) @ np.abs(decoded(weight)).T)
    assert (np.abs(sums.double().numpy() - codes @ decoded(weight).T) <= bound).all()


def test_an_identity_gives_the_weight_back() -> None:
    """Every weight at its own column and row: codes times 127, exactly."""
    pattern, weight = BlockPattern(10), pruned_codes(torch.int8, 9, 33, 10)
    sums, _ = product(torch.eye(33), weight, pattern)
    assert torch.equal(sums.T, 127 * weight.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_scales_and_bias_are_applied_per_token_and_channel_in_float32(with_bias: bool, dtype: torch.dtype) -> None:
    sums = torch.from_numpy(np.random.default_rng(0).integers(-(2**22), 2**22, (6, 4), dtype=np.int32))
    scale, weight_scale, bias = normal(5, 1).abs(), normal(4, seed=1).abs(), normal(4, seed=2).bfloat16()
    out = dequant(sums, scale, weight_scale, bias if with_bias else None, dtype)
    expected = sums[:5].numpy().astype(np.float32) * scale.numpy() * weight_scale.numpy()
    if with_bias:
        expected += bias.float().numpy()
    assert out.shape == (5, 4) and torch.equal(out, torch.from_numpy(expected).to(dtype))


# ---- windows


@BOTH
@pytest.mark.parametrize("length", [*LENGTHS, None])
@pytest.mark.parametrize("columns", [16, 39, 98])
def test_windows_equal_the_twin(dtype: torch.dtype, length: int | None, columns: int) -> None:
    codes = pruned_codes(dtype, 6, columns, length)
    expected = slide_twin.slide(raw(codes), length)
    slid = slide(codes, length)
    assert slid.dtype == dtype
    np.testing.assert_array_equal(raw(slid), expected)
    for packed in (pack(slid), slide_and_pack(codes, length)):
        for mine, theirs in zip(packed, pack_twin.pack(expected), strict=True):
            np.testing.assert_array_equal(mine.view(torch.uint8), theirs.view(np.uint8))
    np.testing.assert_array_equal(raw(unslide(slid, columns, length)), raw(codes))


def test_windows_drop_nothing_and_invent_nothing() -> None:
    with pytest.raises(ValueError, match="row 0, columns 0 … 7 hold 8 non-zeros, 2:8 allows 6"):
        slide(torch.ones(3, 16, dtype=torch.int8), 8)
    slid = slide(pruned_codes(torch.int8, 6, 16, 8), 8)
    slid[4, 2] = slid[4, 4] = 5  # column 2 in two windows
    with pytest.raises(ValueError, match="two windows hold the same input column"):
        unslide(slid, 16, 8)
    with pytest.raises(ValueError, match="32 slid columns"):
        unslide(slid, 64, 8)
    empty = torch.zeros(2, 32, dtype=torch.int8)
    empty[1, 30] = 1  # padding
    with pytest.raises(ValueError, match="padding"):
        unslide(empty, 16, 8)


# ---- unpack


@BOTH
@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_unpack_equals_the_twin(dtype: torch.dtype, length: int | None) -> None:
    values, meta = slide_and_pack(pruned_codes(dtype, 6, 39, length), length)
    slid = unpack(values, meta)
    assert slid.dtype == dtype
    np.testing.assert_array_equal(raw(slid), pack_twin.unpack(raw(values), meta.numpy()))


@pytest.mark.parametrize("nibble", range(16))
@pytest.mark.parametrize("shift", [0, 4])
def test_damaged_positions_are_refused(nibble: int, shift: int) -> None:
    values = torch.arange(1, 17, dtype=torch.int8).view(2, 8)
    meta = torch.full((2, 2), 0x44, dtype=torch.uint8)
    meta[1, 1] = nibble << shift | 4 << 4 - shift
    if (nibble & 3, nibble >> 2) in combinations(range(4), 2):
        assert sorted(unpack(values, meta)[1].tolist()) == [0] * 8 + list(range(9, 17))
    else:
        with pytest.raises(ValueError, match="not ascending and distinct"):
            unpack(values, meta)
