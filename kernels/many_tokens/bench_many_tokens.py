"""Whole linears of many tokens, sums over the layers of a model, beside stock vLLM where it is installed; and, with
--forms, every form of the product of each layer.

python -m slideconvert.kernels.many_tokens.bench_many_tokens --models Qwen2.5-7B --tokens 1024 16384
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.cusparselt import Cusparselt
from ..bench_common import CODES, MODELS, arguments, copies, device_microseconds, header, save, table
from ..few_tokens.bench_few_tokens import stock_vllm
from ..slide_spec import SlideSpec
from .kernel import ManyTokens
from .tiles import FORMS


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
        for name in options.codes:
            lines = []
            for tokens in options.tokens:
                found: dict[str, float] = {}
                for layer, (n, k) in MODELS[model].items():
                    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
                    for way, taken in measured(n, k, x, name, options).items():
                        found[way] = found.get(way, 0.0) + taken
                        size = {"model": model, "layer": layer, "codes": name, "tokens": tokens}
                        rows.append({**size, "way": way, "microseconds": taken})
                base = next(iter(found))
                for way, taken in found.items():
                    lines.append([model, name, tokens, way, f"{taken:.1f}", f"{found[base] / taken:.3f}", base])
            print(table(["model", "codes", "M", "way", "us", "x", "of"], lines), flush=True)
            save(options.out, rows)


def measured(n: int, k: int, x: Tensor, codes: str, options: argparse.Namespace) -> dict[str, float]:
    """Microseconds of a call, by the way to run it."""
    device, dtype = x.device, CODES[codes]
    found = {}
    if (stock := stock_vllm(n, k, x, dtype)) is not None:
        found["stock vLLM"] = stock
    for length in options.lengths:
        spec = SlideSpec(n, k, length, dtype)
        if stock is None:
            found[f"cuSPARSELt 2:{length}"] = timed(
                Cusparselt(spec, device).run, spec, x, Cusparselt(spec, device).prepare
            )
        op = ManyTokens(spec, device)
        found[f"2:{length}"] = timed(op, spec, x, op.prepare)
        if options.forms != [0]:
            for form in FORMS:
                one = ManyTokens(spec, device, forms=[form])
                if one.forms:
                    words = f"{form.tokens}-{form.sharers}-{form.warpgroups}-{form.splits}"
                    found[f"2:{length} {words}"] = timed(one, spec, x, one.prepare)
    return found


def timed(call: Callable[..., Tensor], spec: SlideSpec, x: Tensor, prepare: Callable[..., tuple[Tensor, ...]]) -> float:
    prepared = prepare(spec.random(x.device))
    count = copies(sum(one.nbytes for one in prepared)) if x.shape[0] <= 1024 else 1
    turns = [prepared] + [tuple(one.clone() for one in prepared) for _ in range(count - 1)]
    return device_microseconds(lambda turn: call(x, turn, None), turns)


if __name__ == "__main__":
    main()
