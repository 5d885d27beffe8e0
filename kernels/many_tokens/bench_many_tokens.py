"""Whole linears of many tokens beside stock vLLM where it is installed, else beside cuSPARSELt: all ways replayed in
turn on a warm chip, with its power and clock; then sums over the layers of a model. With --forms 1, every form of the
product too. Each linear has one weight, so that a small one stays in the L2 cache, in every way alike.

python -m slideconvert.kernels.many_tokens.bench_many_tokens --models Qwen2.5-7B --tokens 1024 16384
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends.cusparselt import Cusparselt
from ..bench_common import CODES, MODELS, arguments, header, interleaved, random_codes, save, table
from ..bench_stock import stock_linear
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
            lines: list[list[Any]] = []
            sums: dict[tuple[int, str], float] = {}
            for layer, (n, k) in MODELS[model].items():
                ways = linears(n, k, CODES[codes], options)
                for tokens in options.tokens:
                    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
                    found = interleaved({name: partial(way, x) for name, way in ways.items()})
                    size = {"model": model, "codes": codes, "layer": layer, "tokens": tokens}
                    rows.append(size | vars(found))
                    lines += shown([*size.values()], found.microseconds, f"{found.watts:.0f}, {found.megahertz:.0f}")
                    for way, taken in found.microseconds.items():
                        sums[tokens, way] = sums.get((tokens, way), 0.0) + taken
            for tokens in options.tokens:
                taken_by = {way: taken for (many, way), taken in sums.items() if many == tokens}
                lines += shown([model, codes, "all", tokens], taken_by, "")
            print(table(["model", "codes", "layer", "M", "way", "us", "x", "W, MHz"], lines), flush=True)
            save(options.out, rows)


def shown(size: list[Any], microseconds: dict[str, float], power: str) -> list[list[Any]]:
    """Lines of a table; x: how many times as fast as the first way."""
    base = next(iter(microseconds.values()))
    return [[*size, way, f"{taken:.1f}", f"{base / taken:.3f}", power] for way, taken in microseconds.items()]


def linears(n: int, k: int, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Linear]:
    """A linear [n, k] by the way to run it, compiled."""
    found: dict[str, Linear] = {}
    ops: list[ManyTokens] = []
    stock = stock_linear(n, dtype)
    if stock is not None:
        weight = random_codes(n, k, None, dtype)
        found["stock vLLM"] = lambda x: stock(x, weight)
    for length in options.lengths:
        spec = SlideSpec(n, k, length, dtype)
        made = SlideWeight(spec, torch.rand(n, 1, device="cuda") / 1000, dense=random_codes(n, k, length, dtype))
        if stock is None:
            library = Cusparselt(spec, made.scale.device)
            found[f"cuSPARSELt 2:{length}"] = bound(library.run, library.prepare(made))
        forms: dict[str, Any] = {f"2:{length}": None}
        if options.forms != [0]:
            forms |= {f"2:{length} {one.tokens}-{one.rows}-{one.cluster}-{one.splits}": [one] for one in FORMS}
        for name, among in forms.items():
            ops.append(ManyTokens(spec, made.scale.device, forms=among))
            found[name] = bound(ops[-1], ops[-1].prepare(made))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda op: op.load(torch.bfloat16), ops))
    return found


def bound(run: Callable[..., Tensor], weight: tuple[Tensor, ...]) -> Linear:
    return lambda x: run(x, weight, None)


if __name__ == "__main__":
    main()
