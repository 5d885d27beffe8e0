"""The time to slide and pack weights, and to unpack and unslide them as every loader does, on one CPU thread.

    python benches/bench_windows.py

8192 x 8192 random INT8 codes that follow 2:8, the best of five runs, CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from slideconvert.kernels.windows import pack, slide, slide_and_pack, unpack, unslide

SIZE, LENGTH, REPEATS = 8192, 8, 5


@click.command()
def main() -> None:
    """Time each direction and print a table."""
    torch.set_num_threads(1)
    weight = torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8)
    weight.view(SIZE, -1, LENGTH)[..., [1, 6]] = 0
    slid = slide(weight, LENGTH)
    values, meta = pack(slid)
    assert torch.equal(unslide(unpack(values, meta), SIZE, LENGTH), weight)
    operations: dict[str, Callable[[], Tensor | tuple[Tensor, Tensor]]] = {
        "slide": lambda: slide(weight, LENGTH),
        "pack": lambda: pack(slid),
        "slide_and_pack": lambda: slide_and_pack(weight, LENGTH),
        "unpack": lambda: unpack(values, meta),
        "unslide": lambda: unslide(slid, SIZE, LENGTH),
    }
    click.echo("| operation | seconds |\n|---|---:|")
    for name, operation in operations.items():
        click.echo(f"| {name} | {min(seconds(operation) for _ in range(REPEATS)):.3f} |")


def seconds(operation: Callable[[], object]) -> float:
    """CPU time of one run."""
    started = time.thread_time()
    operation()
    return time.thread_time() - started


if __name__ == "__main__":
    main()
