"""Whole linears (bfloat16 in, bfloat16 out: quantize, product, scales) of real models: sparse against the best dense.

    python -m slideconvert.kernels.backends.bench_backends --models Qwen2.5-7B

Device time: replayed CUDA graphs, decode sizes rotating through weights beyond the cache. Wall: eager calls.
Dense ways: `dense`, our backend (INT8: fused Triton product; FP8: torch._scaled_mm with a scale per token and
channel, accumulated by the tensor cores alone); `int_mm`, torch._int_mm and dequant; `slow`, torch._scaled_mm with
accumulation in float32; `scalar`, torch._scaled_mm with one scale, and dequant. All quantize with the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..bench_common import (
    CODES,
    MODELS,
    arguments,
    copies,
    device_microseconds,
    header,
    host_microseconds,
    random_codes,
    save,
    table,
    wall_microseconds,
)
from ..dequant.kernel import dequant
from ..linear import SlideSparseLinear
from ..quantize.kernel import quantize
from ..slide_spec import SlideSpec
from ..sparse_gemm.kernel import bucket

Way = Callable[[Tensor, Tensor], Tensor]


def dense_ways(spec: SlideSpec, scale: Tensor) -> dict[str, Way]:
    """Dense ways besides our backend: x, codes of the weight -> out."""

    def int_mm(x: Tensor, weight: Tensor) -> Tensor:
        codes, token_scale = quantize(x, torch.int8, max(32, bucket(x.shape[0])))
        return dequant(torch._int_mm(codes, weight.T), token_scale, scale, None, x.dtype)

    def slow(x: Tensor, weight: Tensor) -> Tensor:
        codes, token_scale = quantize(x, spec.dtype)
        return torch._scaled_mm(codes, weight.T, token_scale, scale.view(1, -1), out_dtype=x.dtype)

    one = torch.ones((), device="cuda")

    def scalar(x: Tensor, weight: Tensor) -> Tensor:
        codes, token_scale = quantize(x, spec.dtype)
        sums = torch._scaled_mm(codes, weight.T, one, one, out_dtype=x.dtype, use_fast_accum=True)
        return dequant(sums, token_scale, scale, None, x.dtype)

    return {"int_mm": int_mm} if spec.dtype == torch.int8 else {"slow": slow, "scalar": scalar}


def measure(model: str, layer: str, name: str, tokens: int, lengths: list[int]) -> dict[str, object]:
    n, k = MODELS[model][layer]
    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
    scale = torch.rand(n, 1, device="cuda") * 1e-3
    turns = copies(n * k) if tokens <= 256 else 1
    spec = SlideSpec(n, k, None, CODES[name], "dense")
    weights = [random_codes(n, k, None, CODES[name]) for _ in range(turns)]
    device = {}
    for label, way in dense_ways(spec, scale.view(-1)).items():
        device[label] = device_microseconds(lambda weight: way(x, weight), weights)

    def linear(spec: SlideSpec, weight: Tensor, backend: str) -> SlideSparseLinear:
        return SlideSparseLinear.of(spec, {"weight": weight, "weight_scale": scale}, None, backend=backend)

    dense = [linear(spec, weight, "dense") for weight in weights]
    device["dense"] = device_microseconds(lambda linear: linear(x), dense)
    one = dense[0]
    wall = {"dense": wall_microseconds(lambda: one(x))}
    host = {"dense": host_microseconds(lambda: one(x))} if tokens <= 64 else {}
    dense.clear()
    weights.clear()
    for length in lengths:
        sparse_spec, codes = replace(spec, length=length), random_codes(n, k, length, CODES[name])
        first = linear(sparse_spec, codes, "cusparselt")
        again = [linear(sparse_spec, codes, "cusparselt") for _ in range(turns - 1)]
        pattern = f"2:{length}"
        device[pattern] = device_microseconds(lambda linear: linear(x), [first, *again])
        wall[pattern] = wall_microseconds(lambda: first(x))
        if tokens <= 64:
            host[pattern] = host_microseconds(lambda: first(x))
    return {
        "model": model, "layer": layer, "codes": name, "tokens": tokens, "device": device, "wall": wall, "host": host,
    }  # fmt: skip


def main() -> None:
    options = arguments(
        __doc__, models=list(MODELS), tokens=[64, 256, 1024, 4096, 16384], lengths=[4, 6, 8, 10], codes=["int8", "fp8"]
    )
    print(header(), flush=True)
    rows = []
    with torch.inference_mode():
        for model in options.models:
            for name in options.codes:
                print(f"\n{model}, {name}: sums over {', '.join(MODELS[model])}")
                patterns, lines = [f"2:{length}" for length in options.lengths], []
                for tokens in options.tokens:
                    layers = [measure(model, layer, name, tokens, options.lengths) for layer in MODELS[model]]
                    rows += layers
                    lines.append(_line(tokens, layers, patterns))
                columns = ["M", "best dense, us", "which"]
                columns += [f"{pattern}, us (× best dense)" for pattern in patterns]
                columns += ["wall dense, us", *(f"wall {pattern}" for pattern in patterns)]
                print(table(columns, lines), flush=True)
                save(options.out, rows)


def _line(tokens: int, layers: list[dict[str, Any]], patterns: list[str]) -> list[object]:
    ways = [[label for label in layer["device"] if ":" not in label] for layer in layers]
    chosen = [min(labels, key=layer["device"].__getitem__) for labels, layer in zip(ways, layers, strict=True)]
    best = sum(layer["device"][label] for layer, label in zip(layers, chosen, strict=True))
    sums = [sum(layer["device"][pattern] for layer in layers) for pattern in patterns]
    walls = [sum(layer["wall"][label] for layer in layers) for label in ("dense", *patterns)]
    cells = [f"{total:.1f} ({best / total:.2f})" for total in sums]
    return [tokens, f"{best:.1f}", ", ".join(dict.fromkeys(chosen)), *cells, *(f"{wall:.0f}" for wall in walls)]


if __name__ == "__main__":
    main()
