"""The Triton kernel gives the bytes of the reference, whatever lay in the output before."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.lift_quant import kernel, reference

pytestmark = pytest.mark.gpu

LENGTHS = [4, 6, 8, 10, 12, 14, 16, None]
COLUMNS = [2, 43, 352, 2048]
"""Every number of columns is compiled for itself, so few of them with every pattern; the long ones apart."""


def awkward(tokens: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of every size: zeros, outliers, one non-zero, tiny (subnormal where the dtype has them), huge."""
    x = torch.randn(tokens, columns, device="cuda")
    sizes = torch.tensor([1.0, 1e-3, 300.0, 1e-30, 0.0, 1e-38, 1e30], device="cuda")
    x *= sizes[torch.arange(tokens, device="cuda") % len(sizes)][:, None]
    x[-1] = 0
    x[-1, columns // 2] = -3
    return x.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else x.to(dtype)


def check(columns: int, length: int | None, codes: torch.dtype, dtype: torch.dtype) -> None:
    for tokens in (1, 17, 300):
        x, rows = awkward(tokens, columns, dtype), tokens + 7
        expected, scale = reference.lift_quant(x, length, codes, rows)
        found, found_scale = kernel.lift_quant(x, length, codes, rows)
        assert torch.equal(found_scale, scale), (tokens, columns)
        assert torch.equal(found.view(torch.int8), expected.view(torch.int8)), (tokens, columns)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
def test_the_bytes_of_the_reference(length: int | None, codes: torch.dtype) -> None:
    for columns in COLUMNS:
        check(columns, length, codes, torch.bfloat16)


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_other_dtypes(codes: torch.dtype, dtype: torch.dtype) -> None:
    for columns, length in [(352, 8), (43, 10), (2048, None)]:
        check(columns, length, codes, dtype)


@pytest.mark.parametrize("columns", [3584, 8191, 8192, 18944])
def test_long_rows(columns: int) -> None:
    check(columns, 8, torch.int8, torch.bfloat16)


def test_every_output_byte_is_written() -> None:
    """Started on outputs of known garbage: padding columns and padding rows included, and nothing beyond them."""
    x = awkward(37, 1000, torch.bfloat16)
    op = kernel.LiftQuant(1000, 10, torch.int8, x)
    expected, scale = reference.lift_quant(x, 10, torch.int8, 48)
    codes = torch.full((50, op.slid), 0x55, dtype=torch.int8, device="cuda")
    scales = torch.full((50,), -7.0, device="cuda")
    op.start(x.data_ptr(), codes.data_ptr(), scales.data_ptr(), 37, 48, torch.cuda.current_stream().cuda_stream)
    assert torch.equal(codes[:48], expected) and (codes[48:] == 0x55).all()
    assert torch.equal(scales[:37, None], scale) and (scales[37:] == -7).all()


def test_more_than_two_to_the_31_elements() -> None:
    x = torch.randn(70_000, 32_768, dtype=torch.bfloat16, device="cuda")
    found, _ = kernel.lift_quant(x, 4, torch.int8)
    for part in (slice(0, 64), slice(-64, None)):
        assert torch.equal(found[part], reference.lift_quant(x[part], 4, torch.int8)[0])


def test_views_that_are_not_contiguous_or_not_aligned() -> None:
    base = torch.randn(40, 129, dtype=torch.bfloat16, device="cuda")
    for x in (base[:, 1:], base.flatten()[1:4097].view(32, 128), base.T):
        expected, scale = reference.lift_quant(x, 8, torch.int8)
        found, found_scale = kernel.lift_quant(x, 8, torch.int8)
        assert torch.equal(found, expected) and torch.equal(found_scale, scale)
