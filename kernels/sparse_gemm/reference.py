"""Sparse GEMM over slide windows, the specification: every product of lifted codes and window lanes, summed.

INT8 sums are exact integers (int32 holds them: K' * 127**2 < 2**31 up to K' = 133,000). FP8 products are exact in
float32, their sums rounded to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

EXACT_COLUMNS = 1024
"""Columns whose products float32 adds up exactly: 1024 * 127**2 < 2**24."""
FEW, MANY = 16, 256
"""Rows of the products that are measured, and columns of their result."""


def prepare(slid: Tensor) -> Tensor:
    """slid [N, K'] codes -> the prepared weight that `sparse_gemm` multiplies with: here the same."""
    return slid.contiguous()


def sparse_gemm(codes: Tensor, prepared: Tensor, rows: int) -> Tensor:
    """codes [R, K'], prepared from slid [N, K'], both int8 or both float8 -> sums [R, N], int32 or float32. rows: N."""
    assert prepared.shape[0] == rows
    if codes.dtype == torch.int8:
        return integer_product(codes, prepared)
    return code_floats(codes) @ code_floats(prepared).T


def integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """codes [R, C], weight [N, C], int8 -> exact sums [R, N] int32, on any device."""
    rows, columns = codes.shape
    fits = rows > 16 and columns % 8 == 0 and weight.shape[0] % 8 == 0  # what the library's CUDA kernel asks for
    kind = device_kind(codes)
    if (kind == "cpu" and integers_win(rows)) or (kind == "cuda" and fits):
        return torch._int_mm(codes, weight.T)
    return product_by_floats(codes, weight)


def product_by_floats(codes: Tensor, weight: Tensor) -> Tensor:
    """`integer_product` through float32, EXACT_COLUMNS at a time."""
    rows, columns = codes.shape
    out = torch.zeros(rows, weight.shape[0], dtype=torch.int32, device=codes.device)
    for start in range(0, columns, EXACT_COLUMNS):
        part = slice(start, start + EXACT_COLUMNS)
        out += (codes[:, part].float() @ weight[:, part].float().T).to(torch.int32)
    return out


def integers_win(rows: int) -> bool:
    """Whether torch._int_mm is the faster of two exact products of `rows` tokens on this CPU: without instructions for
    INT8 it takes up to 16 times as long as products of floats. Measured once per process for few and for many rows."""
    return torch.compiler.is_compiling() or _integers_win(FEW if rows <= FEW else MANY, torch.get_num_threads())


@cache
def _integers_win(rows: int, threads: int) -> bool:  # noqa: ARG001
    """Milliseconds of measurement. threads: torch's, which the answer may depend on."""
    codes, weight = (torch.ones(size, EXACT_COLUMNS, dtype=torch.int8) for size in (rows, MANY))
    products = (lambda: torch._int_mm(codes, weight.T), lambda: product_by_floats(codes, weight))
    integers, floats = (min(_seconds(product) for _ in range(3)) for product in products)
    return integers <= floats


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def device_kind(tensor: Tensor) -> str:
    """cpu, cuda, mps, …"""
    return tensor.device.type


def code_floats(codes: Tensor) -> Tensor:
    """int8 or finite float8_e4m3fn -> float32. By shifting bits: ten times faster than .float() on a CPU.

    An E4M3 number is a float16 with four exponent and four mantissa bits missing; in place they read as the value
    times 2**-8, subnormals included (the exponent biases are 7 and 15). NaN would become 480.
    """
    if codes.dtype != torch.float8_e4m3fn:
        return codes.float()
    wide = codes.view(torch.int8).to(torch.int16)
    half = (wide & 0x7F) << 7 | wide & torch.iinfo(torch.int16).min
    return half.view(torch.float16).float().mul_(256)
