"""All forms of the product of few tokens that fit a linear beside the one that is chosen: what the choice costs.

python -m slideconvert.kernels.few_tokens.bench_forms --models Qwen2.5-7B --tokens 1 16 64
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..bench_common import CODES, MODELS, arguments, device_microseconds, header, rotating, save, table
from ..slide_spec import SlideSpec
from .division import Division, clustered, divisions, whole
from .kernel import STATIC_SHARED, FewTokens

X = torch.bfloat16


class Forced(FewTokens):
    """Divided in one way, whatever the estimate says; for the number of tokens that this is for."""

    forced: Division

    def division(self, tokens: int) -> Division:
        return self.forced


def name_of(division: Division) -> str:
    form = division.form
    if form.slabs:
        return f"whole rows, {form.slabs} slabs"
    return f"clusters of {form.cluster}" if form.cluster else "streamed" if form.stream else "held"


def ways(op: FewTokens, tokens: int) -> Iterator[Division]:
    """Of every kind the one with the deepest rings that fits."""
    chosen = op.division(tokens)
    shape = (op.spec.rows, op.columns, chosen.padded, op.unit, op.gpu.processors)
    found = {name_of(chosen): chosen}
    for one in (*divisions(*shape), *clustered(*shape), *(whole(*shape) if op.warpgroup else ())):
        if one.fits(op.gpu.shared_bytes - STATIC_SHARED):
            found.setdefault(name_of(one), one)
    yield from found.values()


def forced(spec: SlideSpec, division: Division, *, dense: bool) -> Forced:
    op = Forced(spec, torch.device("cuda", torch.cuda.current_device()), dense=dense)
    op.forced = division
    return op


def main() -> None:
    options = arguments(
        __doc__, models=["Qwen2.5-7B", "Llama-3.2-1B"], tokens=[1, 16, 64], lengths=[4, 8, 0], codes=["int8"]
    )
    print(header(), "· length 0: dense")
    rows: list[dict[str, Any]] = []
    for model in options.models:
        lines = []
        for linear, (n, k) in MODELS[model].items():
            for codes in options.codes:
                for length in options.lengths:
                    found = measured(SlideSpec(n, k, length or 8, CODES[codes]), options.tokens, dense=not length)
                    for tokens, taken in found.items():
                        chosen, best = next(iter(taken)), min(taken, key=taken.__getitem__)
                        size = {"model": model, "linear": linear, "codes": codes, "length": length, "tokens": tokens}
                        rows.append({**size, "chosen": chosen, "microseconds": taken})
                        shown = [
                            f"{taken[chosen]:.2f}",
                            best,
                            f"{taken[best]:.2f}",
                            f"{taken[chosen] / taken[best]:.3f}",
                        ]
                        lines.append([linear, codes, length, tokens, chosen, *shown])
        print(
            model, table(["linear", "codes", "L", "M", "chosen", "us", "best", "us", "x"], lines), sep="\n", flush=True
        )
        save(options.out, rows)


def measured(spec: SlideSpec, tokens: list[int], *, dense: bool) -> dict[int, dict[str, float]]:
    """Microseconds of the whole linear by tokens and form, what is chosen first."""
    device = torch.device("cuda", torch.cuda.current_device())
    plain = FewTokens(spec, device, dense=dense)
    ops = {many: {name_of(one): forced(spec, one, dense=dense) for one in ways(plain, many)} for many in tokens}
    inputs = {many: torch.randn(many, spec.columns, dtype=X, device=device) for many in tokens}
    prepared = plain.prepare(spec.random(device))

    def first(many: int, op: Forced) -> None:
        torch.cuda.set_device(device)
        op(inputs[many], prepared, None)  # compiles

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: first(*one), [(many, op) for many in tokens for op in ops[many].values()]))
    turns = rotating(prepared)
    return {
        many: {
            name: device_microseconds(lambda turn, op=op, x=inputs[many]: op(x, turn, None), turns)  # type: ignore[misc]
            for name, op in ops[many].items()
        }
        for many in tokens
    }


if __name__ == "__main__":
    main()
