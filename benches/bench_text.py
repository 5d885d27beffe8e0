"""Peak memory and time of drawing calibration sequences from large files, with the demo model's tokenizer.

    python benches/bench_text.py /tmp/text

Each file is the demo text over and over. Every row is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import click
from peak import peak_bytes

from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.kernels.bench_common import table
from slideconvert.plan.calibration import Calibration

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = {"16.txt": 16, "150.jsonl": 150, "1000.jsonl": 1000}
"""Megabytes by name."""


def written(path: Path, size: int) -> Path:
    """The demo text as one document (.txt) or as it is (.jsonl), repeated up to `size` bytes."""
    if not path.exists():
        lines = (EXAMPLES / "demo_text" / "calibration.jsonl").read_text().splitlines()
        pieces = [json.loads(line)["text"] for line in lines] if path.suffix == ".txt" else lines
        with path.open("w") as file:
            for piece in cycle(pieces):
                size -= file.write(piece + "\n")
                if size <= 0:
                    break
    return path


def draw(path: Path) -> None:
    """Print the peak memory of this process in megabytes, and seconds. No path: without reading text."""
    started = time.perf_counter()
    source = Checkpoint.open(EXAMPLES / "demo_model")
    if path.suffix:
        calibration_tokens(Calibration(str(path), samples=8, length=64), source)
    click.echo(f"{peak_bytes() // 2**20} {time.perf_counter() - started:.1f}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--draw", "only", type=click.Path(path_type=Path), hidden=True)
def main(folder: Path, only: Path | None) -> None:
    """Write the files into FOLDER, and print a row for each."""
    if only is not None:
        draw(only)
        return
    folder.mkdir(parents=True, exist_ok=True)
    paths = [Path("none"), *(written(folder / name, size * 10**6) for name, size in FILES.items())]
    rows = []
    for path in paths:
        words = [sys.executable, __file__, str(folder), "--draw", str(path)]
        rows.append([path.name, *subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()])
    click.echo(f"{os.cpu_count()} CPUs")
    click.echo(table(["file, MB", "peak MB", "s"], rows))


if __name__ == "__main__":
    main()
