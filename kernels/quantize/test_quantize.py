"""The Triton kernel gives the bytes of the reference; and its division is the correctly rounded one, exhaustively."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from slideconvert.kernels.quantize import kernel, reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_the_bytes_of_the_reference(codes: torch.dtype, dtype: torch.dtype) -> None:
    for tokens, columns in [(1, 64), (17, 2048), (300, 3584), (33, 43), (9, 18944), (3, 1)]:
        x = torch.randn(tokens, columns, device="cuda") * 10.0 ** torch.arange(-tokens, 0, device="cuda")[:, None] / 3
        x = x.to(dtype)
        x[-1] = 0
        expected, scale = reference.quantize(x, codes, tokens + 5)
        found, found_scale = kernel.quantize(x, codes, tokens + 5)
        assert torch.equal(found_scale, scale), (tokens, columns)
        assert torch.equal(found.view(torch.int8), expected.view(torch.int8)), (tokens, columns)


@triton.jit
def count_wrong(wrong_ptr, x, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Quotients x / scale for BLOCK scales in [1, 2): how many differ from the correctly rounded ones."""
    bits = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    scale = (bits | 0x3F800000).to(tl.float32, bitcast=True)
    reciprocal = tl.div_rn(1.0, scale)
    q = kernel.quotient(x, scale, reciprocal, STEPS)
    tl.atomic_add(wrong_ptr, tl.sum((q != tl.div_rn(x, scale)).to(tl.int32), 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_the_division_is_correctly_rounded_for_every_scale(dtype: torch.dtype) -> None:
    """All 2**23 mantissas of the scale with every mantissa a 16-bit number has, and with some of float32."""
    wrong = torch.zeros(1, dtype=torch.int32, device="cuda")
    size = {torch.bfloat16: 128, torch.float16: 1024}.get(dtype)
    many = [1 + part / size for part in range(size)] if size else (1 + torch.rand(256)).tolist()
    for x in many:
        count_wrong[(2**23 // 1024,)](wrong, x, kernel.steps(dtype), 1024)
    assert wrong.item() == 0
