"""The Triton kernel gives the bits of the reference, on every tile."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.dense_gemm import kernel, reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("bias", [None, torch.bfloat16], ids=["none", "bf16"])
def test_the_bits_of_the_reference(dtype: torch.dtype, bias: torch.dtype | None) -> None:
    for tokens, rows, columns in [(1, 64, 112), (17, 96, 2000), (300, 1000, 3584), (64, 43, 16)]:
        codes, weight = (
            torch.randint(-127, 128, (n, columns), dtype=torch.int8, device="cuda") for n in (tokens, rows)
        )
        scale, weight_scale = torch.rand(tokens, 1, device="cuda"), torch.rand(rows, device="cuda") * 1e-4
        term = None if bias is None else torch.randn(rows, device="cuda").to(bias)
        expected = reference.dense_gemm(codes, weight, scale, weight_scale, term, dtype)
        found = kernel.dense_gemm(codes, weight, scale, weight_scale, term, dtype)
        assert torch.equal(found, expected), (tokens, rows, columns)


@pytest.mark.parametrize("tile", range(len(kernel.TILES)))
def test_every_tile_writes_its_outputs_and_none_beyond(tile: int) -> None:
    tokens, rows, columns = 301, 1000, 368
    codes, weight = (torch.randint(-127, 128, (n, columns), dtype=torch.int8, device="cuda") for n in (tokens, rows))
    scale, weight_scale = torch.rand(tokens, 1, device="cuda"), torch.rand(rows, device="cuda")
    out = torch.full((tokens + 4, rows), float("nan"), dtype=torch.bfloat16, device="cuda")
    at = [tensor.data_ptr() for tensor in (codes, weight, scale, weight_scale, weight_scale, out)]
    gemm = kernel.DenseGemm(rows, columns, None, torch.bfloat16, out.device)
    gemm._start(tile, tuple(at), tokens, torch.cuda.current_stream().cuda_stream)
    expected = reference.dense_gemm(codes, weight, scale, weight_scale, None, torch.bfloat16)
    assert torch.equal(out[:tokens], expected) and out[tokens:].isnan().all()


def test_more_than_two_to_the_31_outputs() -> None:
    codes = torch.randint(-127, 128, (65_600, 32), dtype=torch.int8, device="cuda")
    weight = torch.randint(-127, 128, (32_768, 32), dtype=torch.int8, device="cuda")
    scale, weight_scale = torch.rand(65_600, 1, device="cuda"), torch.rand(32_768, device="cuda")
    found = kernel.dense_gemm(codes, weight, scale, weight_scale, None, torch.bfloat16)
    for part in (slice(0, 64), slice(-64, None)):
        expected = reference.dense_gemm(codes[part], weight, scale[part], weight_scale, None, torch.bfloat16)
        assert torch.equal(found[part], expected)
