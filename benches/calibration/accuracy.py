"""A model after every way to prune it, on several texts: the first tables of benches/measured/accuracy.md.

    python examples/pretrained/make_model.py pretrained/model
    python examples/pretrained/make_texts.py pretrained/texts
    python benches/calibration/accuracy.py pretrained/model pretrained/texts/prose pretrained/texts/code \\
        --out pretrained.jsonl --device cuda --minutes 9 --peer-python peer/bin/python
    python benches/calibration/accuracy.py models/bitnet text --out bitnet.jsonl --activations float \\
        --column 2_8/int8 --column 2_8/int8/full --way balanced --way quality

A text is a folder with calibration.jsonl and evaluation.jsonl. Every measurement is one line of OUT, written as soon as
it is made; the next call makes those that are missing or failed, and prints the tables. Cheap ways come first.

Calibration: sequences of 512 tokens, drawn with seed 0 from calibration.jsonl. Perplexity of the first 160 sequences of
evaluation.jsonl, float32, activations quantized as in serving or not at all, and there the mean KL divergence from the
dense model in nats and how often both expect the same token most; seconds of the whole command, and its peak of GPU
memory. What the dense model expects is kept beside OUT, 671 MB a text for 49,152 tokens. llmcompressor_sparsegpt.py
describes the environment of --peer-python; without it its rows say that they were skipped.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from compare import PEER, broken_blocks, flags, peer_command
from safetensors.torch import save_file
from sequences import NAME, draw

from slideconvert import EvaluateOptions, SlideConvertError, __version__, evaluate
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.core.choices import ACTIVATIONS
from slideconvert.core.patterns import BlockPattern

DENSE = "dense"
WAYS = {
    "magnitude": ["--method", "magnitude"],
    "fast": ["--preset", "fast"],
    "balanced": ["--preset", "balanced"],
    PEER: [],
    "quality": ["--preset", "quality"],
}
"""The ways to prune in the order in which they are measured, and the options of `convert`."""
COLUMNS = [f"{pattern}/{scheme}" for pattern in ("2_8", "2_6", "2_4") for scheme in ("int8", "fp8")]


@dataclass(frozen=True)
class Protocol:
    """What must be equal for two numbers to stand in one table. samples, length, seed: of calibration."""

    model: str
    device: str
    activations: str
    samples: int
    length: int
    seed: int
    sequences: int

    @property
    def drawing(self) -> dict[str, int]:
        return {"samples": self.samples, "length": self.length, "seed": self.seed}


@dataclass(frozen=True)
class Cell:
    """A number of a table. column: PATTERN/SCHEME[/CODES]; "" for the dense model."""

    text: str
    way: str
    column: str = ""


@dataclass(frozen=True)
class Result:
    """What was measured. kl: mean KL divergence from the dense model. same_top: share of positions at which both expect
    the same token most. seconds: of the whole command that made the checkpoint. gigabytes: its peak of GPU memory; None
    on a CPU and for the peer. broken: blocks with too few zeros. failed: why there is no number; "" if there is one."""

    perplexity: float | None = None
    kl: float | None = None
    same_top: float | None = None
    seconds: float | None = None
    gigabytes: float | None = None
    broken: int | None = None
    failed: str = ""


class OutOfTime(Exception):
    """The budget ended before the measurement."""


@dataclass(frozen=True)
class Bench:
    """Where everything is. kept: folder for what the dense model expects. deadline: on time.monotonic's clock."""

    model: Path
    texts: dict[str, Path]
    protocol: Protocol
    kept: Path
    peer: str | None
    deadline: float

    def measure(self, cell: Cell) -> Result:
        """The result of one cell; a failure is a result as well. OutOfTime."""
        try:
            if cell.way == DENSE:
                return Result(self.scored([self.model], cell)["perplexity"])
            if cell.way == PEER and not self.peer:
                return Result(failed="skipped: no --peer-python")
            with tempfile.TemporaryDirectory() as folder:
                return self.pruned(cell, Path(folder))
        except (SlideConvertError, RuntimeError, OSError) as error:  # of torch, too: no memory on the device
            return Result(failed=" ".join(str(error).split())[-300:])

    def pruned(self, cell: Cell, folder: Path) -> Result:
        """Make a checkpoint in `folder` and measure it."""
        out, (name, scheme, *codes) = folder / "out", cell.column.split("/")
        pattern = BlockPattern.parse(name)
        calibration = self.texts[cell.text] / "calibration.jsonl"
        command = [sys.executable, "-m", "slideconvert", "convert", str(self.model), *WAYS[cell.way]]
        command += [
            "--pattern",
            name,
            "--scheme",
            scheme,
            "--layout",
            "dense",
            "--device",
            self.protocol.device,
            "--json",
        ]
        command += ["--codes", *codes] if codes else []
        if cell.way == PEER:
            saved = folder / "sequences.safetensors"
            save_file({NAME: draw(self.model, str(calibration), **self.protocol.drawing)}, saved)
            command = peer_command(str(self.peer), self.model, saved, pattern, scheme, {})
        elif cell.way != "magnitude":
            command += ["--calibration", str(calibration), *flags(self.protocol.drawing)]
        started = time.monotonic()
        try:
            done = subprocess.run(
                [*command, str(out)], capture_output=True, text=True, errors="replace", timeout=self.left()
            )
        except subprocess.TimeoutExpired as error:
            raise OutOfTime from error
        seconds = time.monotonic() - started
        if done.returncode:
            return Result(failed=" ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}")
        stages = {} if cell.way == PEER else json.loads(done.stdout)["stages"]
        most = max((stage["device_bytes"] for stage in stages.values()), default=0)
        row = self.scored([self.model, out], cell)
        return Result(
            row["perplexity"],
            row["kl_mean"],
            row["same_top"],
            seconds=round(seconds, 1),
            gigabytes=round(most / 1e9, 2) or None,
            broken=broken_blocks(Checkpoint.open(out), pattern),
        )

    def scored(self, folders: list[Path], cell: Cell) -> dict[str, Any]:
        """What `eval` says of the last of these checkpoints on the evaluation text of a cell."""
        sequences, length = self.protocol.sequences, self.protocol.length
        options = EvaluateOptions(
            text=str(self.texts[cell.text] / "evaluation.jsonl"),
            sequences=sequences,
            length=length,
            device=self.protocol.device,
            activations=self.protocol.activations,
            keep_base=self.kept / f"{self.model.name}-{cell.text}-{sequences}x{length}.base",
        )
        rows = evaluate([str(folder) for folder in folders], options).perplexity
        assert rows
        return rows[-1]

    def left(self) -> float:
        """Seconds of the budget that are left. OutOfTime if there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return left


def read_results(path: Path, protocol: Protocol) -> dict[Cell, Result]:
    """The last result of each cell in a file of earlier calls with the same protocol."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a call that was killed while it wrote
        if row["protocol"] == asdict(protocol):
            found[Cell(**row["cell"])] = Result(**row["result"])
    return found


def measure_all(bench: Bench, cells: list[Cell], out: Path) -> Iterator[tuple[Cell, Result]]:
    """Measure cells, append each to `out`, and yield it, until the time is over."""
    machine = torch.cuda.get_device_name() if bench.protocol.device.startswith("cuda") else platform.machine()
    versions = {"slideconvert": __version__, "torch": torch.__version__, "machine": machine}
    for cell in cells:
        try:
            bench.left()
            result = bench.measure(cell)
        except OutOfTime:
            click.echo("out of time: call it again for the rest", err=True)
            return
        row = {"cell": asdict(cell), "result": asdict(result), "protocol": asdict(bench.protocol), **versions}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        yield cell, result


def markdown(text: str, results: dict[Cell, Result], columns: list[str], ways: list[str]) -> str:
    """The table of one text: perplexity, KL divergence, same token (seconds, GPU memory), or why there is none."""
    titles = [column.replace("_", ":").replace("/", " ") for column in columns]
    lines = [f"| {text} | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    if dense := results.get(Cell(text, DENSE)):
        lines.append(f"| {DENSE} | {shown(dense)} |" + " |" * (len(columns) - 1))
    for way in ways:
        cells = [results.get(Cell(text, way, column)) for column in columns]
        lines.append(f"| {way} | {' | '.join(shown(cell) for cell in cells)} |")
    return "\n".join(lines)


def shown(result: Result | None) -> str:
    """A cell of the table."""
    if result is None:
        return ""
    if result.perplexity is None:
        return "skipped" if result.failed.startswith("skipped") else "failed"
    found = [f"{result.perplexity:.2f}"]
    if result.kl is not None and result.same_top is not None:
        found += [f"{result.kl:.3f}", f"{result.same_top:.1%}"]
    if result.seconds is None:
        return " · ".join(found)
    memory = f", {result.gigabytes:.1f} GB" if result.gigabytes else ""
    return f"{' · '.join(found)} ({result.seconds:.0f} s{memory})"


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("texts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON lines.")
@click.option("--column", "columns", multiple=True, default=COLUMNS, show_default=True, help="PATTERN/SCHEME[/CODES]")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), default=list(WAYS))
@click.option("--samples", default=128, show_default=True, type=click.IntRange(1))
@click.option("--length", default=512, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
@click.option("--sequences", default=160, show_default=True, type=click.IntRange(1), help="Sequences to measure on.")
@click.option("--activations", type=click.Choice(ACTIVATIONS), default="quantized", show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--peer-python", help="The Python of llm-compressor's environment.")
@click.option("--minutes", default=1440.0, show_default=True, type=click.FloatRange(0), help="Stop after these.")
def main(
    model: Path, texts: tuple[Path, ...], out: Path, columns: tuple[str, ...], ways: tuple[str, ...], device: str,
    activations: str, peer_python: str | None, minutes: float, **protocol: int,
) -> None:  # fmt: skip
    named = {text.name: text for text in texts}
    agreed = Protocol(model.name, device, activations, **protocol)
    bench = Bench(model, named, agreed, out.absolute().parent, peer_python, time.monotonic() + 60 * minutes)
    wanted = [Cell(text, DENSE) for text in named]
    wanted += [Cell(text, way, column) for way in WAYS if way in ways for column in columns for text in named]
    results = read_results(out, agreed)
    missing = [cell for cell in wanted if cell not in results or results[cell].perplexity is None]
    for cell, result in measure_all(bench, missing, out):
        results[cell] = result
        what = " ".join(filter(None, (cell.text, cell.column, cell.way)))
        click.echo(f"{what}: {result.failed or shown(result)}", err=True)
    for text in named:
        click.echo(markdown(text, results, list(columns), [way for way in WAYS if way in ways]) + "\n")
    for cell, result in results.items():
        if result.failed:
            click.echo(f"{cell.text} {cell.column} {cell.way}: {result.failed}")


if __name__ == "__main__":
    main()
