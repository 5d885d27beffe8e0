"""The Triton kernel gives the bits of the reference: no fused multiply-add where the reference rounds twice."""

from __future__ import annotations

import pytest
import torch

from slideconvert.kernels.dequant import kernel, reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sums", [torch.int32, torch.bfloat16, torch.float32], ids=["int32", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("bias", [None, torch.bfloat16, torch.float32], ids=["none", "bf16", "fp32"])
def test_the_bits_of_the_reference(sums: torch.dtype, dtype: torch.dtype, bias: torch.dtype | None) -> None:
    for tokens, columns in [(1, 32), (17, 2048), (300, 1030), (64, 43)]:
        wide = -(-columns // 32) * 32
        values = torch.randint(-(2**24), 2**24, (tokens + 3, wide), device="cuda").to(sums)[:, :columns]
        scale, weight_scale = torch.rand(tokens, 1, device="cuda"), torch.rand(columns, device="cuda") * 1e-6
        term = None if bias is None else torch.randn(columns, device="cuda").to(bias)
        expected = reference.dequant(values, scale, weight_scale, term, dtype)
        assert torch.equal(kernel.dequant(values, scale, weight_scale, term, dtype), expected), (tokens, columns)


def test_every_output_is_written_and_none_beyond() -> None:
    sums = torch.randint(-999, 999, (40, 64), dtype=torch.int32, device="cuda")
    scale, weight_scale = torch.rand(40, 1, device="cuda"), torch.rand(64, device="cuda")
    out = torch.full((40, 50), float("nan"), dtype=torch.bfloat16, device="cuda")
    op = kernel.Dequant(50, 64, torch.int32, None, out)
    at = [tensor.data_ptr() for tensor in (sums, scale, weight_scale, out)]
    op.start(at[0], at[1], at[2], at[2], at[3], 37, torch.cuda.current_stream().cuda_stream)
    expected = reference.dequant(sums[:, :50], scale[:37], weight_scale[:50], None, torch.bfloat16)
    assert torch.equal(out[:37], expected) and out[37:].isnan().all()


def test_more_than_two_to_the_31_elements() -> None:
    sums = torch.randint(-999, 999, (70_000, 32_768), dtype=torch.int32, device="cuda")
    scale, weight_scale = torch.rand(70_000, 1, device="cuda"), torch.rand(32_768, device="cuda")
    found = kernel.dequant(sums, scale, weight_scale, None, torch.bfloat16)
    for part in (slice(0, 64), slice(-64, None)):
        expected = reference.dequant(sums[part], scale[part], weight_scale, None, torch.bfloat16)
        assert torch.equal(found[part], expected)
