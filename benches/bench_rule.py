"""What `auto` chooses against the dense kernels of the program, measured anew: no linear at any number of tokens may be
more than 2 % slower.

    python benches/bench_rule.py --host vllm --model Qwen2.5-7B --out rule.json

The choice comes from the tables alone (run `slideconvert tune` before). Both are measured in the same run, as whole
linears, bfloat16 in and out. Numbers of tokens that are left to the dense kernel are measured once, and so are dense
ways of one shape, whatever its pattern.
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
from slideconvert.kernels.backends.base import Backend
from slideconvert.kernels.backends.choose import Host, Settings, candidates, choose
from slideconvert.kernels.backends.routed import Routed
from slideconvert.kernels.backends.rule import BUCKETS, Route
from slideconvert.kernels.slide_spec import SlideSpec

LEAST = 0.98


class Comparison:
    """Times of the dense kernel and of what was chosen, one directly after the other: clocks change within a run."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._found: dict[tuple[str, ...], list[tuple[int, float, float]]] = {}

    def of(self, spec: SlideSpec, chosen: Backend) -> list[tuple[int, float, float]]:
        """Tokens, and microseconds of both; those of the dense kernel where it is the one that was chosen."""
        key = (chosen.name, *sorted({way.timed_as(spec) for way in ways_of(chosen)}))
        if key not in self._found:
            self._found[key] = list(self._measured(spec, chosen))
        return self._found[key]

    def _measured(self, spec: SlideSpec, chosen: Backend) -> Iterator[tuple[int, float, float]]:
        stock = [way for way in candidates(spec, chosen.device, self.host) if way.name in self.host.stock]
        clocks = {way: choosing.CLOCK(spec, chosen.device) for way in (*stock, chosen)}
        route = chosen.route if isinstance(chosen, Routed) else Route.only(chosen.name)
        for tokens in BUCKETS:
            dense = [taken for way in stock if (taken := clocks[way](way, tokens))]
            if route.way(tokens) in self.host.stock and dense:
                yield tokens, min(dense), min(dense)
            elif dense and (taken := clocks[chosen](chosen, tokens)):
                yield tokens, min(dense), taken
        for clock in clocks.values():
            clock.close()


def ways_of(backend: Backend) -> list[Backend]:
    return backend.ways if isinstance(backend, Routed) else [backend]


@click.command()
@click.option("--host", default="vllm", help="Program whose dense kernels are the baseline.")
@click.option("--model", "models", multiple=True, default=tuple(MODELS), help="Shapes to measure; several times.")
@click.option("--pattern", default=PATTERNS)
@click.option("--scheme", default=SCHEMES)
@click.option("--memory", default=0.0, help="As the setting of that name.")
@click.option("--out", type=click.Path(path_type=Path), help="The numbers as JSON.")
def main(host: str, models: tuple[str, ...], pattern: str, scheme: str, memory: float, out: Path | None) -> None:
    """Print a line for each linear, and the slowest of all."""
    device, rows = torch.device("cuda", 0), list[dict[str, Any]]()
    with host_of(host) as program:
        comparison = Comparison(program)
        for model in models:
            options = TuneOptions(host=host, model=model, pattern=pattern, scheme=scheme)
            for spec, names in linears_of(None, options).items():
                backend = choose(spec, device, Settings(memory=memory, measure=0.0), program).backend
                found = [
                    {
                        "model": model, "linear": str(spec), "names": names, "tokens": tokens, "backend": backend.name,
                        "stock": dense, "chosen": taken, "speedup": dense / taken, "nbytes": backend.nbytes,
                    }
                    for tokens, dense, taken in comparison.of(spec, backend)
                ]  # fmt: skip
                rows += found
                speeds = " ".join(f"{row['tokens']}:{row['speedup']:.2f}" for row in found)
                click.echo(f"{model} {spec} ({', '.join(names)}) on {backend.name}: {speeds}")
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
