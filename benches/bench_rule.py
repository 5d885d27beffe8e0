"""What `auto` chooses against the dense kernels of the program, measured anew: no linear at any number of tokens may be
more than 2 % slower.

    python benches/bench_rule.py --host vllm --model Qwen2.5-7B --out rule.json

The choice comes from the tables alone (run `slideconvert tune` before). Both are measured in the same run, as whole
linears, bfloat16 in and out; a linear that is left to the dense kernel is the dense kernel, and not measured twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from slideconvert.api.options import TuneOptions
from slideconvert.api.tuned_linears import MODELS, PATTERNS, SCHEMES, linears_of
from slideconvert.api.tuning import host_of
from slideconvert.kernels.backends import choose as choosing
from slideconvert.kernels.backends.choose import Host, Settings, candidates, choose
from slideconvert.kernels.backends.rule import BUCKETS
from slideconvert.kernels.slide_spec import SlideSpec

LEAST = 0.98


def rows_of(
    spec: SlideSpec, names: list[str], device: torch.device, host: Host, memory: float
) -> Iterator[dict[str, Any]]:
    """One for each number of tokens: microseconds of the dense kernel and of what was chosen."""
    choice = choose(spec, device, Settings(memory=memory, measure=0.0), host)
    clock = choosing.CLOCK(spec, device)
    stock = [way for way in candidates(spec, device, host) if way.name in host.stock]
    dense: dict[int, float] = {}
    for way in stock:
        for tokens in BUCKETS:
            if taken := clock(way, tokens):
                dense[tokens] = min(taken, dense.get(tokens, taken))
    left = set(choice.backend.name.split(",")) <= set(host.stock)
    for tokens in BUCKETS:
        chosen = dense.get(tokens) if left else clock(choice.backend, tokens)
        if tokens in dense and chosen:
            yield {
                "linear": str(spec), "names": names, "tokens": tokens, "backend": choice.backend.name,
                "stock": dense[tokens], "chosen": chosen, "speedup": dense[tokens] / chosen,
                "nbytes": choice.backend.nbytes,
            }  # fmt: skip
    clock.close()


@click.command()
@click.option("--host", default="vllm", help="Program whose dense kernels are the baseline.")
@click.option("--model", "models", multiple=True, default=tuple(MODELS), help="Shapes to measure; several times.")
@click.option("--pattern", default=PATTERNS)
@click.option("--scheme", default=SCHEMES)
@click.option("--memory", default=0.0, help="As the setting of that name.")
@click.option("--out", type=click.Path(path_type=Path), help="The numbers as JSON.")
def main(host: str, models: tuple[str, ...], pattern: str, scheme: str, memory: float, out: Path | None) -> None:
    """Print a line for each linear, and the slowest of all."""
    device, rows = torch.device("cuda", 0), []
    with host_of(host) as program:
        for model in models:
            options = TuneOptions(host=host, model=model, pattern=pattern, scheme=scheme)
            for spec, names in linears_of(None, options).items():
                found = list(rows_of(spec, names, device, program, memory))
                rows += [{"model": model, **row} for row in found]
                speeds = " ".join(f"{row['tokens']}:{row['speedup']:.2f}" for row in found)
                backend = found[0]["backend"] if found else "not measured"
                click.echo(f"{model} {spec} ({', '.join(names)}) on {backend}: {speeds}")
                if out:
                    out.write_text(json.dumps({"gpu": torch.cuda.get_device_name(0), "rows": rows}, indent=1) + "\n")
    if rows:
        slowest = min(rows, key=lambda row: row["speedup"])
        click.echo(
            f"slowest of {len(rows)}: {slowest['speedup']:.3f}, {slowest['linear']} at {slowest['tokens']} tokens"
        )
        click.echo(f"below {LEAST}: {sum(row['speedup'] < LEAST for row in rows)}")


if __name__ == "__main__":
    main()
