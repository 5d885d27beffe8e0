"""Runs the Triton kernels in Triton's interpreter, on the CPU, against their references. A script of its own, because
the interpreter must be chosen before Triton is imported: TRITON_INTERPRET=1 python -m tests.helpers.interpreted_kernels

The interpreter does not fuse multiply-adds, so a quotient may come out a rounding off: then, and only where the exact
quotient is within 1e-4 of a tie, a code may be the other neighbour's. It does not round FP8 and bfloat16 outputs as
GPUs do either, and has no loops up to a number that is not a constant: INT8 codes, float16 and float32 outputs are
compared here, all others, and the dense product, where there is a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slideconvert.kernels.dequant import kernel as dequant
from slideconvert.kernels.dequant import reference as dequant_reference
from slideconvert.kernels.lift_quant import kernel as lift_quant
from slideconvert.kernels.lift_quant import reference as lift_quant_reference
from slideconvert.kernels.quantize import kernel as quantize
from slideconvert.kernels.quantize import reference as quantize_reference
from slideconvert.kernels.windows import group_of, lift_index, slid_columns

POISON = 0x55
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = (4, 6, 8, 10, 12, 14, 16, None)


def activations(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(tokens, columns) * torch.tensor([10.0, 1e-3, 0.0, 1e-30, 3.0])[torch.arange(tokens) % 5, None]
    return x.to(dtype)


def check_codes(found: Tensor, expected: Tensor, quotients: Tensor) -> None:
    """quotients [tokens, columns]: what was rounded to the codes of the first rows."""
    wrong = found != expected
    tokens = quotients.shape[0]
    assert not wrong[tokens:].any(), "padding rows"
    tie = ((quotients - quotients.floor()) - 0.5).abs() < 1e-4
    assert not (wrong[:tokens] & ~tie).any(), "codes"
    assert ((found.int() - expected.int()).abs() <= 1).all()


def check_quantize(tokens: int, columns: int, dtype: torch.dtype) -> None:
    x, rows = activations(tokens, columns, dtype), tokens + 2
    expected, scale = quantize_reference.quantize(x, torch.int8, rows)
    codes, found_scale = torch.full_like(expected, POISON), torch.full_like(scale, -1)
    quantize.quantize_kernel[(rows,)](x, codes, found_scale, tokens, columns, 127.0, False, quantize.steps(dtype), 32)
    assert torch.equal(found_scale, scale)
    check_codes(codes, expected, x.double() / scale.double())


def check_lift_quant(tokens: int, columns: int, dtype: torch.dtype, length: int | None) -> None:
    x, rows = activations(tokens, columns, dtype), tokens + 2
    expected, scale = lift_quant_reference.lift_quant(x, length, torch.int8, rows)
    codes, found_scale = torch.full_like(expected, POISON), torch.full_like(scale, -1)
    pairs = x.element_size() == 2 and columns % 2 == 0
    windows = group_of(length)[1] if length else 0
    lift_quant.lift_quant_kernel[(rows,)](
        x, codes, found_scale, tokens, columns, slid_columns(columns, length), windows, 127.0, False,
        quantize.steps(dtype), pairs, False, 16, 16,
    )  # fmt: skip
    assert torch.equal(found_scale, scale)
    index = lift_index(columns, length)
    quotients = torch.where(index >= 0, x[:, index.clamp(min=0)].double(), 0.0) / scale.double()
    check_codes(codes, expected, quotients)


def check_dequant(dtype: torch.dtype, bias: Tensor | None) -> None:
    sums = torch.randint(-(2**24), 2**24, (11, 64), dtype=torch.int32)[:, :50]
    scale, weight_scale = torch.rand(10, 1), torch.rand(50) * 1e-4
    expected = dequant_reference.dequant(sums, scale, weight_scale, bias, dtype)
    out = torch.full((12, 50), float("nan"), dtype=dtype)
    term = weight_scale if bias is None else bias
    dequant.dequant_kernel[(2, 2)](sums, scale, weight_scale, term, out, 10, 50, 64, bias is not None, 32, 8)
    assert torch.equal(out[:10], expected) and out[10:].isnan().all()


def main() -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        for columns in (64, 43):
            check_quantize(5, columns, dtype)
    for length in LENGTHS:
        for dtype, columns in ((torch.bfloat16, 100), (torch.float16, 100), (torch.float32, 43)):
            check_lift_quant(5, columns, dtype, length)
    for dtype in (torch.float16, torch.float32):
        for bias in (None, torch.randn(50)):
            check_dequant(dtype, bias)


if __name__ == "__main__":
    main()
