"""cuSPARSELt against the reference: INT8 to the last integer, FP8 as near as torch's own FP8 product."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.sparse_gemm import kernel, library, reference
from slideconvert.kernels.windows import slide

pytestmark = pytest.mark.gpu

CODES = pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])


def slid_codes(rows: int, columns: int, length: int | None, dtype: torch.dtype) -> Tensor:
    """Random codes of the whole range, two zeros in every group, at random places; slid."""
    codes = random_codes(rows, columns, dtype)
    if length:
        groups = -(-columns // length)
        order = torch.rand(rows, groups, length, device="cuda").argsort(-1)
        codes.view(torch.int8)[(order < 2).flatten(1)[:, :columns]] = 0
    return slide(codes, length)


def random_codes(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device="cuda")
    return codes if dtype == torch.int8 else torch.randn(rows, columns, device="cuda").mul_(40).to(dtype)


@CODES
@pytest.mark.parametrize("length", [4, 6, 8, 10, 12, 14, 16, None])
def test_sums_are_those_of_the_reference(length: int | None, dtype: torch.dtype) -> None:
    for tokens, rows, columns in [(1, 32, 64), (17, 96, 352), (300, 1000, 2049), (64, 4608, 3584)]:
        slid = slid_codes(rows, columns, length, dtype)
        codes = random_codes(tokens, slid.shape[1], dtype)
        found = kernel.sparse_gemm(codes, kernel.prepare(slid), rows)
        assert found.shape == (tokens, rows)
        if dtype == torch.int8:
            assert torch.equal(found, reference.sparse_gemm(codes, slid, rows)), (tokens, rows, columns)
            continue
        exact = codes.double() @ slid.double().T
        one, multiple = torch.ones((), device="cuda"), 16
        fill = (0, 0, 0, -rows % multiple)
        padded = torch.nn.functional.pad(slid.view(torch.int8), fill).view(dtype)
        plain = torch._scaled_mm(codes, padded.T, one, one, out_dtype=torch.float32, use_fast_accum=True)[:, :rows]
        # torch's product, added up by the tensor cores alone as 2:4 products are; or float32 rounding of the sum
        allowed = 2 * (plain - exact).norm() + 2**-23 * exact.norm()
        assert (found.double() - exact).norm() <= allowed, (tokens, rows, columns)


@CODES
def test_bfloat16_sums_are_rounded_once(dtype: torch.dtype) -> None:
    slid = slid_codes(256, 1024, 8, dtype)
    codes, prepared = random_codes(100, slid.shape[1], dtype), kernel.prepare(slid)
    exact = kernel.sparse_gemm(codes, prepared, 256)
    rounded = kernel.sparse_gemm(codes, prepared, 256, torch.bfloat16)
    assert (rounded.double() - exact.double()).norm() <= 2**-9 * exact.double().norm()


def test_more_than_two_to_the_31_sums() -> None:
    rows, tokens = 37888, 65536
    slid = slid_codes(rows, 64, 4, torch.int8)
    codes = random_codes(tokens, 64, torch.int8)
    found = kernel.sparse_gemm(codes, kernel.prepare(slid), rows)
    for part in (slice(0, 64), slice(-64, None)):
        assert torch.equal(found[part], reference.sparse_gemm(codes[part], slid, rows))


def test_windows_that_are_not_two_of_four_are_refused() -> None:
    with pytest.raises(library.LibraryError, match="more than two non-zeros"):
        kernel.prepare(torch.ones(32, 64, dtype=torch.int8, device="cuda"))


def test_plans_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MOST_PLANS", 3)
    monkeypatch.setattr(kernel, "_PLANS", OrderedDict())
    slid = slid_codes(64, 128, 8, torch.int8)
    prepared = kernel.prepare(slid)
    gemm = kernel.SparseGemm(slid.device, 64, slid.shape[1], torch.int8, torch.int32)
    first = gemm.plan(5, prepared)
    assert gemm.plan(16, prepared) is first and gemm.plan(17, prepared) is not first
    for tokens in (40, 60, 80):
        gemm.plan(tokens, prepared)
    assert len(kernel._PLANS) == 3 and gemm.plan(5, prepared) is not first


def test_timing_is_refused_while_a_graph_is_captured() -> None:
    slid = slid_codes(96, 192, 6, torch.int8)
    prepared, codes = kernel.prepare(slid), random_codes(16, slid.shape[1], torch.int8)
    with pytest.raises(RuntimeError, match="run the model once"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        kernel.sparse_gemm(codes, prepared, 96)
