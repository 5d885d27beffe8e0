"""An 8-bit linear as vLLM runs it on NVIDIA GPUs, for benches that compare with it. Its operators are imported when
they are called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor


def stock_quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [M, K] bfloat16 or float16 -> codes [M, K], scale [M, 1], by vLLM's own kernels."""
    from vllm import _custom_ops as ops

    if dtype == torch.int8:
        codes, scale, _ = ops.scaled_int8_quant(x, None, None, symmetric=True)
        return codes, scale
    pair: tuple[Tensor, Tensor] = ops.scaled_fp8_quant(x, None, use_per_token_if_dynamic=True)
    return pair


def stock_product(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [M, K], scale [M, 1], weight [N, K], weight_scale [N, 1] -> [M, N] of dtype, by its CUTLASS product."""
    from vllm import _custom_ops as ops

    out: Tensor = ops.cutlass_scaled_mm(codes, weight.t(), scale, weight_scale, dtype)
    return out


def stock_linear(n: int, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Of x [M, K] and codes [n, K] on the current GPU, with random scales; None if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    scale = torch.rand(n, 1, device="cuda")
    return lambda x, weight: stock_product(*stock_quantize(x, dtype), weight, scale, x.dtype)
