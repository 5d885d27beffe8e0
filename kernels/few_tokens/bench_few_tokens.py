"""Whole linears of few tokens, sums over the layers of a model, beside the dense backend; stock vLLM too where it is
installed. (cuSPARSELt: slideconvert bench layer.)

python -m slideconvert.kernels.few_tokens.bench_few_tokens --models Qwen2.5-7B
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.base import Backend
from ..backends.dense import Dense
from ..bench_common import (
    CODES,
    MODELS,
    arguments,
    copies,
    device_microseconds,
    header,
    random_codes,
    rotating,
    save,
    table,
)
from ..bench_stock import stock_linear
from ..slide_spec import SlideSpec
from .kernel import FewTokens


def main() -> None:
    options = arguments(
        __doc__,
        models=["Qwen2.5-7B", "Llama-3.2-3B", "Llama-3.2-1B"],
        tokens=[1, 4, 16, 32, 64],
        lengths=[4, 6, 8, 10],
        codes=["int8", "fp8"],
    )
    print(header())
    rows: list[dict[str, Any]] = []
    lines = []
    for model in options.models:
        for name in options.codes:
            for tokens in options.tokens:
                found: dict[str, float] = {}
                for layer, (n, k) in MODELS[model].items():
                    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
                    for way, taken in measured(n, k, x, name, options.lengths).items():
                        found[way] = found.get(way, 0.0) + taken
                        size = {"model": model, "layer": layer, "codes": name, "tokens": tokens}
                        rows.append({**size, "way": way, "microseconds": taken})
                base = next(way for way in ("stock vLLM", "dense") if way in found)
                for way, taken in found.items():
                    lines.append([model, name, tokens, way, f"{taken:.1f}", f"{found[base] / taken:.2f}", base])
    print(table(["model", "codes", "M", "way", "us", "x", "of"], lines))
    save(options.out, rows)


def measured(n: int, k: int, x: Tensor, codes: str, lengths: list[int]) -> dict[str, float]:
    """Microseconds of a call, by the way to run it."""
    device, dtype = x.device, CODES[codes]
    found = {}
    if (stock := stock_vllm(n, k, x, dtype)) is not None:
        found["stock vLLM"] = stock
    dense = SlideSpec(n, k, 8, dtype)
    found["dense"] = timed(Dense(dense, device), dense, x)
    found["few tokens, dense"] = timed(FewTokens(dense, device, dense=True), dense, x)
    for length in lengths:
        spec = SlideSpec(n, k, length, dtype)
        found[f"few tokens 2:{length}"] = timed(FewTokens(spec, device), spec, x)
    return found


def timed(op: Backend | FewTokens, spec: SlideSpec, x: Tensor) -> float:
    return device_microseconds(lambda turn: op(x, turn, None), rotating(op.prepare(spec.random(x.device))))


def stock_vllm(n: int, k: int, x: Tensor, dtype: torch.dtype) -> float | None:
    """vLLM's quantize kernel and its CUTLASS product; None if vLLM is not installed."""
    call = stock_linear(n, dtype)
    if call is None:
        return None
    weight = random_codes(n, k, None, dtype)
    return device_microseconds(lambda turn: call(x, turn), [weight.clone() for _ in range(copies(weight.numel()))])


if __name__ == "__main__":
    main()
