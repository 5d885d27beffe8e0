"""INT8 and FP8 weights against the twin bit for bit: scales, ties to even, rows of every size, and plain zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import BF16, FP8, INT8, Scheme, parse_scheme
from slideconvert.errors import InputError
from slideconvert.kernels import planes
from slideconvert.kernels.sparse_gemm.reference import code_floats
from tests.helpers.matrices import examples, raw
from tests.twins import quantize as twin

BOTH = pytest.mark.parametrize("scheme", [INT8, FP8], ids=lambda scheme: scheme.name)
FINITE = torch.tensor(twin.FINITE, dtype=torch.uint8).view(torch.float8_e4m3fn)
VALUES = torch.tensor([twin.e4m3_value(byte) for byte in twin.FINITE])


def assert_equals_the_twin(weight: Tensor, scheme: Scheme) -> None:
    codes, scale = twin.quantize(weight.float().numpy(), scheme.name)
    found = scheme.quantize(weight)
    assert (found.codes.dtype, found.scale.dtype) == (getattr(torch, scheme.dtype), torch.float32)
    np.testing.assert_array_equal(raw(found.scale), scale.view(np.int32)[:, None])
    np.testing.assert_array_equal(raw(found.codes), codes.view(np.int8))


def bits_of(found: QuantizedWeight) -> list[list[int]]:
    """The codes as bytes 0 … 255."""
    return found.codes.view(torch.uint8).tolist()


# ---- against the twin


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_random_weights_equal_the_twin(dtype: torch.dtype, scheme: Scheme) -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    assert_equals_the_twin(weight.to(dtype), scheme)


@BOTH
@pytest.mark.parametrize(
    "largest",
    [1.4e-45, 1e-40, 1e-38, 127 * 2.0**-126, 448 * 2.0**-126, 1e-30, 1e-3, 1.0, 65504.0, 1e38, 3.4028234e38],
)
def test_rows_of_every_size_equal_the_twin(largest: float, scheme: Scheme) -> None:
    row = torch.linspace(-1, 1, 33) * torch.tensor(largest)
    assert_equals_the_twin(torch.stack([row, -row, row.flip(0)]), scheme)


@BOTH
def test_a_single_outlier_equals_the_twin(scheme: Scheme) -> None:
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    weight[1, 7], weight[2, 0] = -1000, 1e9
    assert_equals_the_twin(weight, scheme)
    assert scheme.quantize(weight).codes[2].float().tolist() == [scheme.qmax] + [0.0] * 29


@BOTH
def test_rows_do_not_influence_each_other_and_zero_rows_have_scale_one(scheme: Scheme) -> None:
    weight = torch.tensor([[0.0, -0.0, 0.0], [1e-38, 0.0, -1e-39], [3e38, 1.0, -3e38], [0.0, 0.0, -2.0]])
    assert_equals_the_twin(weight, scheme)
    found = scheme.quantize(weight)
    assert found.scale[0].item() == 1 and bits_of(found)[0] == [0, 0, 0]


@BOTH
@examples(25)
@given(rows=st.integers(1, 3), columns=st.integers(1, 20), power=st.integers(-42, 37), seed=st.integers(0, 2**32))
def test_any_weight_equals_the_twin(scheme: Scheme, rows: int, columns: int, power: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns)) * 10.0**power
    assert_equals_the_twin(torch.from_numpy(values.astype(np.float32)), scheme)


# ---- by hand


def test_int8_halves_round_to_even() -> None:
    row = [127.0, 0.5, 1.5, 2.5, 3.5, 125.5, 126.5, -0.5, -1.5, -2.5, -126.5, -127.0]
    found = INT8.quantize(torch.tensor([row]))
    assert found.scale.item() == 1
    assert found.codes.tolist() == [[127, 0, 2, 2, 4, 126, 126, 0, -2, -2, -126, -127]]


def test_fp8_numbers_stand_for_themselves() -> None:
    found = FP8.quantize(VALUES[None])
    assert found.scale.item() == 1
    assert bits_of(found) == [[0 if byte == 0x80 else byte for byte in twin.FINITE]]


@pytest.mark.parametrize("sign", [1, -1])
def test_fp8_halves_round_to_the_even_mantissa(sign: int) -> None:
    """Every midpoint of two neighbours, subnormals included, and the float32 numbers next to it on both sides."""
    positive = torch.tensor([twin.e4m3_value(byte) for byte in range(127)])
    middle = (positive[:-1] + positive[1:]) / 2
    below, above = torch.nextafter(middle, torch.tensor(0.0)), torch.nextafter(middle, torch.tensor(1000.0))
    row = sign * torch.cat([torch.tensor([448.0]), middle, below, above])
    lower = np.arange(126)
    expected = np.concatenate([[126], lower + lower % 2, lower, lower + 1])
    negative = 128 * ((sign < 0) & (expected > 0))
    assert bits_of(FP8.quantize(row[None])) == [(expected + negative).tolist()]


@BOTH
def test_scale_is_absmax_over_qmax_in_float32(scheme: Scheme) -> None:
    weight = torch.randn(64, 9, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = [np.float32(max(abs(row))) / np.float32(scheme.qmax) for row in weight.float().numpy()]
    assert scheme.grid(weight).scale[:, 0].tolist() == expected
    assert {INT8: 127, FP8: 448}[scheme] == scheme.qmax


@pytest.mark.parametrize("absmax", [1e-40, 2.0**-126, 1e-37])
@BOTH
def test_scale_is_never_subnormal(absmax: float, scheme: Scheme) -> None:
    weight = torch.tensor([[absmax, 0.0]])
    assert scheme.grid(weight).scale.item() == 2.0**-126
    code = scheme.quantize(weight).codes[0, 0].float().item()
    assert abs(code * 2.0**-126 - weight[0, 0].double().item()) <= 2.0**-127


# ---- what holds for every weight


@BOTH
@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_error_is_at_most_half_a_step(scheme: Scheme, exponent: int) -> None:
    """INT8: half a scale. FP8: half a gap of E4M3 at the code's size, the smallest gap being 2^-9 scales.

    On top of it only the rounding of w / scale to float32, 2^-24 of at most qmax.
    """
    weight = torch.randn(50, 60, generator=torch.Generator().manual_seed(3)) * 2.0**exponent
    found = scheme.quantize(weight)
    in_scales = weight.double() / found.scale.double()
    codes = found.codes.double()
    gap = torch.ones_like(codes)
    if scheme is FP8:
        gap = 2.0 ** (codes.abs().clamp(min=2.0**-6).log2().floor() - 3)
    assert ((in_scales - codes).abs() <= gap / 2 + scheme.qmax * 2.0**-24).all()


def test_the_grid_is_symmetric_and_zeros_are_plain() -> None:
    """No -128 and no FP8 -0 (byte 0x80), not even for weights that round to zero from below."""
    weight = torch.randn(200, 50, generator=torch.Generator().manual_seed(4))
    weight[:, 0], weight[:, 1] = -1000, -0.0
    for scheme in (INT8, FP8):
        codes = scheme.quantize(weight).codes
        assert 0x80 not in codes.view(torch.uint8)
        assert (codes.float()[:, 0] == -scheme.qmax).all() and (raw(codes) == 0).sum() > 200
        np.testing.assert_array_equal(raw(scheme.quantize(-weight).codes.float()), raw(0 - codes.float()))


@BOTH
def test_dequantize_multiplies_codes_by_the_row_scale(scheme: Scheme) -> None:
    codes = torch.tensor([[1, -2, 0], [4, 5, -6]]).to(getattr(torch, scheme.dtype))
    scale = torch.tensor([[0.5], [3.0]])
    expected = [[0.5, -1.0, 0.0], [12.0, 15.0, -18.0]]
    assert QuantizedWeight(codes, scale, scheme).dequantize().tolist() == expected
    assert QuantizedWeight(codes, scale.bfloat16(), scheme).dequantize().dtype == torch.float32


@BOTH
def test_blocks_of_rows_and_the_weight_itself_stay_the_same(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(9, 31, generator=torch.Generator().manual_seed(5))
    before, whole = weight.clone(), scheme.quantize(weight)
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", 70)
    found = scheme.quantize(weight)
    assert bits_of(found) == bits_of(whole) and torch.equal(found.scale, whole.scale)
    assert torch.equal(weight, before)


def test_codes_as_floats() -> None:
    """The decoder that the measures use, on every finite FP8 byte and every INT8 code."""
    np.testing.assert_array_equal(raw(code_floats(FINITE)), raw(VALUES))  # the sign of -0, too
    int8 = torch.arange(-128, 128).to(torch.int8)
    assert torch.equal(code_floats(int8), torch.arange(-128.0, 128.0))


def test_unquantized_weights_have_no_codes() -> None:
    with pytest.raises(InputError, match="scheme bf16 has no codes"):
        BF16.quantize(torch.ones(1, 1))


def test_schemes_by_name() -> None:
    assert [parse_scheme(name) for name in ("int8", "fp8", "bf16")] == [INT8, FP8, BF16]
    assert [scheme.quantized for scheme in (INT8, FP8, BF16)] == [True, True, False]
    with pytest.raises(InputError, match=r"unknown scheme 'int4' \(did you mean int8\?"):
        parse_scheme("int4")
