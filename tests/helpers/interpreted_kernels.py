"""Runs the Triton kernels in Triton's interpreter, on the CPU, against their references. A script of its own, because
the interpreter must be chosen before Triton is imported: TRITON_INTERPRET=1 python -m tests.helpers.interpreted_kernels

With the roundings of a GPU (interpreter.py) all bytes are the same. The interpreter has no loops up to a number that is
not a constant: the dense product is compared where there is a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slideconvert.kernels.dequant import kernel as dequant
from slideconvert.kernels.dequant import reference as dequant_reference
from slideconvert.kernels.lift_quant import kernel as lift_quant
from slideconvert.kernels.lift_quant import reference as lift_quant_reference
from slideconvert.kernels.operand import Operand
from slideconvert.kernels.producers import kernel as producers
from slideconvert.kernels.producers import values
from slideconvert.kernels.producers.reference import SUM, Producer
from slideconvert.kernels.quantize import kernel as quantize
from slideconvert.kernels.quantize import reference as quantize_reference
from slideconvert.kernels.quantize.reference import QMAX
from slideconvert.kernels.windows import group_of, slid_columns
from tests.helpers import interpreter, produced

POISON = 0x55
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8 = torch.float8_e4m3fn
LENGTHS = (4, 6, 8, 10, 12, 14, 16, None)


def activations(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(tokens, columns) * torch.tensor([10.0, 1e-3, 0.0, 1e-30, 3.0])[torch.arange(tokens) % 5, None]
    return x.to(dtype)


def check_quantize(tokens: int, columns: int, dtype: torch.dtype, kind: torch.dtype) -> None:
    x, rows, fp8 = activations(tokens, columns, dtype), tokens + 2, kind == FP8
    expected, scale = quantize_reference.quantize(x, kind, rows)
    codes, found_scale = torch.full(expected.shape, POISON, dtype=torch.int8), torch.full_like(scale, -1)
    quantize.quantize_kernel[(rows,)](
        x, codes, found_scale, tokens, columns, QMAX[kind], fp8, quantize.steps(dtype), 32
    )  # fmt: skip
    assert torch.equal(found_scale, scale) and torch.equal(codes, expected.view(torch.int8))


def check_lift_quant(tokens: int, columns: int, dtype: torch.dtype, length: int | None, kind: torch.dtype) -> None:
    x, rows, fp8 = activations(tokens, columns, dtype), tokens + 2, kind == FP8
    expected, scale = lift_quant_reference.lift_quant(x, length, kind, rows)
    codes, found_scale = torch.full(expected.shape, POISON, dtype=torch.int8), torch.full_like(scale, -1)
    pairs = x.element_size() == 2 and columns % 2 == 0
    windows = group_of(length)[1] if length else 0
    lift_quant.lift_quant_kernel[(rows,)](
        x, codes, found_scale, tokens, columns, slid_columns(columns, length), windows, QMAX[kind], fp8,
        quantize.steps(dtype), pairs, False, 16, 16,
    )  # fmt: skip
    assert torch.equal(found_scale, scale) and torch.equal(codes, expected.view(torch.int8))


def check_dequant(dtype: torch.dtype, bias: Tensor | None) -> None:
    sums = torch.randint(-(2**24), 2**24, (11, 64), dtype=torch.int32)[:, :50]
    scale, weight_scale = torch.rand(10, 1), torch.rand(50) * 1e-4
    expected = dequant_reference.dequant(sums, scale, weight_scale, bias, dtype)
    out = torch.full((12, 50), float("nan"), dtype=dtype)
    term = weight_scale if bias is None else bias
    dequant.dequant_kernel[(2, 2)](sums, scale, weight_scale, term, out, 10, 50, 64, bias is not None, 32, 8)
    assert torch.equal(out[:10], expected) and out[10:].isnan().all()


def check_produce(producer: Producer, operand: Operand, dtype: torch.dtype, tokens: int = 3) -> None:
    """The slow twins' bytes, in the very order of the launch but for the sizes of the steps."""
    given, rows, columns = produced.inputs(producer, tokens, operand.columns, dtype), tokens + 1, operand.columns
    *constants, _, hold, _, _ = producers.constants(producer, operand, dtype, (columns, columns))
    codes = torch.full((rows, operand.width), POISON, dtype=torch.int8)
    scale, total = torch.full((tokens, 1), -1.0), torch.full_like(given.x, float("nan"))
    other, weight = (given.x if tensor is None else tensor for tensor in (given.other, given.weight))
    producers.produce_kernel[(rows,)](
        given.x, other, weight, total, codes, scale, tokens, *constants, False, 16 if hold else 0, 16, 16
    )  # fmt: skip
    found = codes.view(operand.dtype), scale, total if producer.element == SUM else None
    exact = produced.check(producer, given, operand, found)
    assert exact >= tokens // 2 or dtype == torch.float32, (producer, operand, dtype, exact)


def check_values(producer: Producer, columns: int, dtype: torch.dtype, tokens: int = 3) -> None:
    """The numbers that are quantized: those of the twins wherever they are not in doubt."""
    given = produced.inputs(producer, tokens, columns, dtype)
    other, weight = (given.x if tensor is None else tensor for tensor in (given.other, given.weight))
    out, total = (torch.full_like(given.x, float("nan")) for _ in range(2))
    pairs, eps = dtype.itemsize == 2 and columns % 2 == 0, producer.eps
    values.values_kernel[(tokens,)](
        given.x, other, weight, total, out, columns, columns, columns, producer.element, eps is not None, eps or 0.0,
        pairs, False, 16,
    )  # fmt: skip
    produced.check_values(producer, given, out, total if producer.element == SUM else None)


def check_producers() -> None:
    """Every producer unlifted in rows of words, pairs and single bytes; every pattern; FP8; other dtypes."""
    sixteen = torch.bfloat16
    for turn, producer in enumerate(produced.PRODUCERS):
        for columns, dtype in ((36, sixteen), (27, sixteen), (35, torch.float32)):
            check_values(producer, columns, dtype)
        for columns in (36, 38, 27):
            check_produce(producer, Operand(columns, torch.int8), sixteen)
        for dtype, codes in ((sixteen, torch.float8_e4m3fn), (torch.float16, torch.int8), (torch.float32, torch.int8)):
            check_produce(producer, Operand(35 + turn % 2, codes, True, LENGTHS[turn]), dtype)
    for turn, length in enumerate(LENGTHS):
        for producer in (produced.ADD_NORM, produced.GATE):
            check_produce(producer, Operand(36 + turn % 2, torch.int8, True, length), sixteen)
    for length, multiple in ((6, 256), (8, 384), (10, 256)):  # as the product of many tokens reads them
        operand = Operand(140, torch.int8, True, length, 1 if length == 6 else 16, multiple)
        check_produce(produced.ADD_NORM, operand, sixteen)


def main() -> None:
    torch.manual_seed(0)
    interpreter.install()
    check_producers()
    for dtype in DTYPES:
        for columns in (64, 43):
            check_quantize(5, columns, dtype, FP8 if columns == 43 else torch.int8)
    for length in LENGTHS:
        for dtype, columns in ((torch.bfloat16, 100), (torch.float16, 100), (torch.float32, 43)):
            check_lift_quant(5, columns, dtype, length, FP8 if dtype == torch.float16 else torch.int8)
    for dtype in DTYPES:
        for bias in (None, torch.randn(50)):
            check_dequant(dtype, bias)


if __name__ == "__main__":
    main()
