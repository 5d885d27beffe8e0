"""The time of coordinate descent over ternary codes, and of the sweep that makes them, for one linear.

    python benches/bench_descent.py --rows 2560 --columns 2560 --pattern 2:8 --device cuda

Random weights and inputs. A first run of each warms up; then the median of several, each until the device is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import click
import torch

from slideconvert.core.patterns import BlockPattern
from slideconvert.core.precision import full_precision
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import INT8
from slideconvert.prune.descent import descend
from slideconvert.prune.sweep import block_order, column_order, damp, sweep


@click.command()
@click.option("--rows", default=2560, help="N, the outputs of the linear.")
@click.option("--columns", default=2560, help="K, its inputs.")
@click.option("--pattern", default="2:8")
@click.option("--device", default="cpu")
@click.option("--repeats", default=5)
def main(rows: int, columns: int, pattern: str, device: str, repeats: int) -> None:
    """Print a table of milliseconds."""
    chosen, generator = BlockPattern.parse(pattern), torch.Generator().manual_seed(0)
    latent = torch.randn(rows, columns, generator=generator).to(device)
    inputs = torch.randn(2 * columns, columns, generator=generator).to(device)
    with full_precision():
        damped = damp((inputs + 0.7 * inputs.roll(1, 1)).T @ inputs.add(inputs.roll(1, 1), alpha=0.7) / len(inputs))
        grid = INT8.as_ternary.grid(latent * 0.4)
        blocks, visits = block_order(latent, damped, chosen), column_order(damped)
        keep = chosen.select_largest(latent)
        rounded, _ = sweep(latent, damped.gram, visits, keep=keep, grid=grid)
        assert isinstance(rounded, QuantizedWeight)
        given = rounded.codes.float(), rounded.scale, latent, damped.gram, chosen
        operations: dict[str, Callable[[], object]] = {
            "descent with latent weights": lambda: descend(*given, latent),
            "descent without": lambda: descend(*given, None),
            "sweep that prunes": lambda: sweep(latent, damped.gram, blocks, choose=chosen),
            "sweep that rounds to int8": lambda: sweep(
                latent, damped.gram, visits, keep=keep, grid=INT8.grid(latent * keep)
            ),
        }
        click.echo(f"{rows} x {columns}, {chosen}, {device}\n\n| operation | ms |\n|---|---:|")
        for name, operation in operations.items():
            milliseconds(operation, device)
            taken = median(milliseconds(operation, device) for _ in range(repeats))
            click.echo(f"| {name} | {taken:.1f} |")


def milliseconds(operation: Callable[[], object], device: str) -> float:
    """Wall time of one run."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    operation()
    if on_gpu:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
