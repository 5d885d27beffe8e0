"""The time of single operations on one CPU thread: why planes.py uses integer masks instead of comparisons.

python benches/bench_elementwise.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

ELEMENTS = 1 << 17
"""One plane of a block of 2:8: it fits the L2 cache, as it does in the conversion."""
REPEATS = 300

a = torch.randint(-127, 128, (ELEMENTS,), dtype=torch.int8)
b = torch.randint(0, 2, (ELEMENTS,)).bool()
v = torch.randint(0, 30000, (ELEMENTS,), dtype=torch.int16)
w = torch.randint(0, 30000, (ELEMENTS,), dtype=torch.int16)
f = a.float().to(torch.float8_e4m3fn)

OPERATIONS: dict[str, Callable[[], Tensor]] = {
    "int8 & int8": lambda: a & a,
    "int8 >> 7": lambda: a >> 7,
    "int16 minimum": lambda: torch.minimum(v, w),
    "int16 subtract": lambda: v - w,
    "int8 != 0 (to bool)": lambda: a != 0,
    "int16 > int16 (to bool)": lambda: v > w,
    "nonzero mask by shifts, (a | -a) >> 7": lambda: (a | -a) >> 7,
    "torch.where(bool, int8, 0)": lambda: torch.where(b, a, 0),
    "int8.masked_fill(bool, 0)": lambda: a.masked_fill(b, 0),
    "bool.any()": lambda: b.any(),
    "int8.amax()": lambda: a.amax(),
    "float8.float()": lambda: f.float(),
}


@click.command()
def main() -> None:
    """Time each operation and print a table."""
    torch.set_num_threads(1)
    click.echo("| operation | ns per element |\n|---|---|")
    for name, operation in OPERATIONS.items():
        for _ in range(10):
            operation()
        started = time.thread_time()
        for _ in range(REPEATS):
            operation()
        click.echo(f"| `{name}` | {(time.thread_time() - started) / REPEATS / ELEMENTS * 1e9:.3f} |")


if __name__ == "__main__":
    main()
