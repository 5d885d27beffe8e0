"""Whole linears of many tokens, sums over the layers of a model, beside stock vLLM where it is installed (else beside
cuSPARSELt): replayed in turn on a warm chip, with its power and clock. With --forms 1, every form of the product too.

python -m slideconvert.kernels.many_tokens.bench_many_tokens --models Qwen2.5-7B --tokens 1024 16384
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..backends.cusparselt import Cusparselt
from ..bench_common import CODES, MODELS, arguments, header, interleaved, random_codes, save, table
from ..few_tokens.bench_few_tokens import stock_linear
from ..slide_spec import SlideSpec, SlideWeight
from .kernel import ManyTokens
from .tiles import FORMS

Linear = Callable[[Tensor], Tensor]


def main() -> None:
    options = arguments(
        __doc__,
        models=["Qwen2.5-7B", "Qwen2.5-14B", "Llama-3.2-3B", "Llama-3.2-1B"],
        tokens=[256, 512, 1024, 4096, 16384],
        lengths=[4, 6, 8, 10],
        codes=["int8", "fp8"],
        forms=[0],
    )
    print(header())
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for codes in options.codes:
            ways, lines = prepared(model, CODES[codes], options), []
            for tokens in options.tokens:
                found = interleaved(calls(model, ways, tokens))
                size = {"model": model, "codes": codes, "tokens": tokens}
                rows.append(size | vars(found))
                base = next(iter(found.microseconds))
                power = f"{found.watts:.0f} W, {found.megahertz:.0f} MHz"
                for way, taken in found.microseconds.items():
                    speed = found.microseconds[base] / taken
                    lines.append([*size.values(), way, f"{taken:.1f}", f"{speed:.3f}", base, power])
            print(table(["model", "codes", "M", "way", "us", "x", "of", "power and clock"], lines), flush=True)
            save(options.out, rows)


def prepared(model: str, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, list[Linear]]:
    """The linears of a model, one after another, by the way to run them."""
    found: dict[str, list[Linear]] = {}
    ops: list[ManyTokens] = []
    for n, k in MODELS[model].values():
        stock = stock_linear(n, dtype)
        if stock is not None:
            found.setdefault("stock vLLM", []).append(dense(stock, random_codes(n, k, None, dtype)))
        for length in options.lengths:
            spec = SlideSpec(n, k, length, dtype)
            scale = torch.rand(n, 1, device="cuda") / 1000
            made = SlideWeight(spec, scale, dense=random_codes(n, k, length, dtype))
            forms: dict[str, Any] = {f"2:{length}": None}
            if options.forms != [0]:
                forms |= {f"2:{length} {one.tokens}-{one.rows}-{one.cluster}-{one.splits}": [one] for one in FORMS}
            for name, among in forms.items():
                op = ManyTokens(spec, scale.device, forms=among)
                ops.append(op)
                found.setdefault(name, []).append(linear(op, op.prepare(made)))
            if stock is None:
                library = Cusparselt(spec, scale.device)
                found.setdefault(f"cuSPARSELt 2:{length}", []).append(linear(library.run, library.prepare(made)))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda op: op.load(torch.bfloat16), ops))
    return found


def linear(run: Callable[..., Tensor], weight: Sequence[Tensor]) -> Linear:
    return lambda x: run(x, weight, None)


def dense(run: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Linear:
    return lambda x: run(x, weight)


def calls(model: str, ways: dict[str, list[Linear]], tokens: int) -> dict[str, Callable[[], Any]]:
    """What runs all linears of a way."""
    inputs = [torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda") for _, k in MODELS[model].values()]

    def call(linears: list[Linear]) -> Callable[[], Any]:
        return lambda: [run(x) for run, x in zip(linears, inputs, strict=True)]

    return {name: call(linears) for name, linears in ways.items()}


if __name__ == "__main__":
    main()
