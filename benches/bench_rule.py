"""What `auto` chooses against the dense kernels of the program, measured anew: no linear at any number of tokens may be
more than 2 % slower.

    python benches/bench_rule.py --host vllm --model Qwen2.5-7B --out rule.json

The choice comes from the tables alone (run `slideconvert tune` before). Both are measured in the same run, as whole
linears, bfloat16 in and out; a linear that is left to the dense kernel is the dense kernel, and not measured twice. Nor
are dense ways measured again for another pattern of the same shape.
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
from slideconvert.kernels.backends.rule import BUCKETS
from slideconvert.kernels.slide_spec import SlideSpec

LEAST = 0.98


class Measured:
    """Microseconds by tokens of a way of a linear, or of the best of several; measured when first asked for."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], dict[int, float]] = {}

    def of(self, spec: SlideSpec, ways: list[Backend]) -> dict[int, float]:
        times: dict[int, float] = {}
        for way in ways:
            parts = way.ways if isinstance(way, Routed) else [way]
            key = (way.name, *sorted({part.timed_as(spec) for part in parts}))
            if key not in self._found:
                clock = choosing.CLOCK(spec, way.device)
                self._found[key] = {tokens: taken for tokens in BUCKETS if (taken := clock(way, tokens))}
                clock.close()
            for tokens, taken in self._found[key].items():
                times[tokens] = min(taken, times.get(tokens, taken))
        return times


def rows_of(
    spec: SlideSpec, names: list[str], device: torch.device, host: Host, memory: float, measured: Measured
) -> Iterator[dict[str, Any]]:
    """One for each number of tokens: microseconds of the dense kernel and of what was chosen."""
    backend = choose(spec, device, Settings(memory=memory, measure=0.0), host).backend
    dense = measured.of(spec, [way for way in candidates(spec, device, host) if way.name in host.stock])
    left = set(backend.name.split(",")) <= set(host.stock)
    chosen = dense if left else measured.of(spec, [backend])
    for tokens in sorted(dense.keys() & chosen.keys()):
        yield {
            "linear": str(spec), "names": names, "tokens": tokens, "backend": backend.name, "stock": dense[tokens],
            "chosen": chosen[tokens], "speedup": dense[tokens] / chosen[tokens], "nbytes": backend.nbytes,
        }  # fmt: skip


@click.command()
@click.option("--host", default="vllm", help="Program whose dense kernels are the baseline.")
@click.option("--model", "models", multiple=True, default=tuple(MODELS), help="Shapes to measure; several times.")
@click.option("--pattern", default=PATTERNS)
@click.option("--scheme", default=SCHEMES)
@click.option("--memory", default=0.0, help="As the setting of that name.")
@click.option("--out", type=click.Path(path_type=Path), help="The numbers as JSON.")
def main(host: str, models: tuple[str, ...], pattern: str, scheme: str, memory: float, out: Path | None) -> None:
    """Print a line for each linear, and the slowest of all."""
    device, rows, measured = torch.device("cuda", 0), [], Measured()
    with host_of(host) as program:
        for model in models:
            options = TuneOptions(host=host, model=model, pattern=pattern, scheme=scheme)
            for spec, names in linears_of(None, options).items():
                found = list(rows_of(spec, names, device, program, memory, measured))
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
