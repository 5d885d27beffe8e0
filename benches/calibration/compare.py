"""Calibrated pruning against llm-compressor's SparseGPT: perplexity and time, in one run on one machine.

    python benches/calibration/compare.py models/llama --calibration calibration.jsonl --text evaluation.jsonl \\
        --case 2_8/int8 --case 2_4/bf16 --peer-python peer/bin/python

llmcompressor_sparsegpt.py describes its environment. Both sides get the same sequences (sequences.py) and the cores
that this process may use (`taskset` narrows them), and run one after another, each as a process of its own.
Perplexity is measured by us for both: float32, weights as stored, activations not quantized.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from sequences import NAME, draw
from torch import Tensor

from slideconvert import __version__
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.schemes import parse_scheme
from slideconvert.core.weights import values
from slideconvert.errors import SlideConvertError
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.formats.record import describe_linear, read_record
from slideconvert.models.families import decoder_linears
from slideconvert.models.load import load_model, load_tokenizer
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences

PEER = "llm-compressor SparseGPT"
PEER_SCRIPT = Path(__file__).with_name("llmcompressor_sparsegpt.py")


@dataclass(frozen=True)
class Run:
    """One process. Seconds: work, pruning and quantizing alone, as it reports it; wall from start to end, imports and
    reading included; cpu of all its threads, user and system.

    load: of the machine in the minute before, in processes that want to run. reported: the JSON that it printed.
    """

    work: float
    wall: float
    cpu: float
    load: float
    reported: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One way to prune one case. broken: blocks with too few zeros for the pattern, over all decoder linears."""

    pattern: str
    scheme: str
    how: str
    perplexity: float
    broken: int
    runs: list[Run]

    def median(self, what: str) -> float:
        """The median over all runs of one of the times."""
        return float(statistics.median(getattr(run, what) for run in self.runs))


def timed(command: Sequence[str]) -> Run:
    """Run a command that ends its stdout with a JSON object. ClickException with its stderr if it fails."""
    load, before, started = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    lines = done.stdout.splitlines()
    reported = json.loads(done.stdout if lines[0] == "{" else lines[-1])  # the peer logs to stdout before it
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Run(working_seconds(reported), wall, cpu, load, reported)


def broken_blocks(checkpoint: Checkpoint, pattern: BlockPattern) -> int:
    """The number of blocks of the decoder linears with more non-zeros than the pattern allows."""
    record, broken = read_record(checkpoint.config, str(checkpoint.path)), 0
    for linear in decoder_linears(checkpoint.config) if pattern.prunes else ():
        stored = values(describe_linear(checkpoint, record, linear.name).read(checkpoint)).float() != 0
        padded = torch.nn.functional.pad(stored, (0, -stored.shape[1] % pattern.block))
        taken = padded.unflatten(1, (-1, pattern.block)).sum(2)
        broken += int((taken > pattern.most_nonzeros).sum())
    return broken


def peer_command(
    python: str, model: Path, sequences: Path, pattern: BlockPattern, scheme: str, options: dict[str, int]
) -> list[str]:
    """llm-compressor's command; the output folder follows. options: batch, block, threads."""
    command = [python, str(PEER_SCRIPT), str(model), str(sequences), "--mask", str(pattern), "--scheme", scheme]
    return command + flags(options)


def our_command(
    preset: str, model: Path, calibration: str, pattern: BlockPattern, scheme: str, drawing: dict[str, int]
) -> list[str]:
    """Our command; the output folder follows."""
    command = [sys.executable, "-m", "slideconvert", "convert", str(model), "--preset", preset, "--layout", "dense"]
    command += [
        "--pattern",
        pattern.slug,
        "--scheme",
        scheme,
        "--device",
        "cpu",
        "--calibration",
        calibration,
        "--json",
    ]
    return command + flags(drawing)


def flags(numbers: dict[str, int]) -> list[str]:
    """{"seed": 0} as --seed 0."""
    return [word for name, number in numbers.items() for word in (f"--{name}", str(number))]


def working_seconds(reported: dict[str, Any]) -> float:
    """The seconds that a process reports for pruning and quantizing. Ours includes writing the layers, and training."""
    if "stages" in reported:
        stages = [reported["stages"].get(stage, {"seconds": 0.0}) for stage in ("calibrate", "train")]
        return float(sum(stage["seconds"] for stage in stages))
    return float(reported["seconds"]["prune"] + reported["seconds"].get("quantize", 0.0))


def measure(model: Path, tokens: Tensor) -> float:
    """The perplexity of a checkpoint: float32, weights as stored, activations not quantized."""
    return perplexity(load_model(Checkpoint.open(model), activations="float"), tokens)


def compare(
    ways: dict[str, list[str]], outputs: Path, pattern: BlockPattern, scheme: str, tokens: Tensor, repeats: int
) -> list[Row]:
    """Run every way (by name, a command without its output folder) `repeats` times; measure its last output."""
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for repeat in range(repeats):  # alternating, so that a busy minute does not fall on one side
        for number, (way, command) in enumerate(ways.items()):
            runs[way].append(timed([*command, str(outputs / f"{number}.{repeat}")]))
    rows = []
    for number, way in enumerate(ways):
        folder = outputs / f"{number}.{repeats - 1}"
        broken = broken_blocks(Checkpoint.open(folder), pattern)
        rows.append(Row(str(pattern), scheme, way, measure(folder, tokens), broken, runs[way]))
        click.echo(f"{pattern} {scheme} {way}: {rows[-1].perplexity:.4f}", err=True)
    return rows


def markdown(rows: list[Row], protocol: dict[str, Any]) -> str:
    """The rows as a table, the protocol above it. Times are medians; × is to the peer's fastest on the case."""
    loads = [run.load for row in rows for run in row.runs]
    lines = [
        f"{protocol['model']}; {protocol['samples']} sequences of {protocol['length']} tokens, "
        f"seed {protocol['seed']}; perplexity on {protocol['sequences']} sequences, "
        f"the model as it is {protocol['perplexity']:.3f}; runs: {protocol['repeats']}, "
        f"on {protocol['cores']} cores, load before them {min(loads):.1f} … {max(loads):.1f}",
        "",
        "| pattern | scheme | how | perplexity | work, s | × | process, s | × | CPU, s | broken blocks |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        peers = [
            one for one in rows if (one.pattern, one.scheme) == (row.pattern, row.scheme) and one.how.startswith(PEER)
        ]
        cells = [row.pattern, row.scheme, row.how, f"{row.perplexity:.3f}"]
        for time_of in ("work", "wall"):
            fastest = min((peer.median(time_of) for peer in peers), default=0.0)
            cells += [f"{row.median(time_of):.1f}", f"{row.median(time_of) / fastest:.2f}" if fastest else ""]
        cells += [f"{row.median('cpu'):.1f}", str(row.broken)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--calibration", required=True, help=".txt, .jsonl or .parquet.")
@click.option("--text", required=True, help="Text to measure on: .txt, .jsonl or .parquet.")
@click.option("--case", "cases", multiple=True, default=("2_8/int8",), show_default=True, metavar="2_L/SCHEME")
@click.option(
    "--presets", default="fast,balanced", show_default=True, help="Our presets, separated by commas; may be empty."
)
@click.option("--peer-python", help="Python of llm-compressor's environment.  [default: measure ours alone]")
@click.option(
    "--peer-batch", default=1, show_default=True, type=click.IntRange(1), help="Sequences per forward pass of the peer."
)
@click.option(
    "--peer-block", default=128, show_default=True, type=click.IntRange(1), help="Columns per block of the peer."
)
@click.option(
    "--peer-threads",
    multiple=True,
    type=click.IntRange(1),
    help="Threads of the peer; each number is measured.  [default: all cores]",
)
@click.option("--samples", default=128, show_default=True, type=click.IntRange(1))
@click.option("--length", default=512, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
@click.option("--sequences", default=160, show_default=True, type=click.IntRange(1), help="Sequences to measure on.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1), help="Repetitions of the timing.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="File for all measurements.")
def main(
    model: Path, calibration: str, text: str, cases: tuple[str, ...], presets: str, peer_python: str | None,
    peer_batch: int, peer_block: int, peer_threads: tuple[int, ...], sequences: int, repeats: int, out: Path | None,
    **drawing: int,
) -> None:  # fmt: skip
    """Prune MODEL both ways in every case and print a table."""
    rows: list[Row] = []
    cores = len(os.sched_getaffinity(0))
    peer = {"batch": peer_batch, "block": peer_block}
    try:
        wanted = [(BlockPattern.parse(pattern), parse_scheme(scheme).name) for pattern, _, scheme in map(parts, cases)]
        tokens = token_sequences(
            load_tokenizer(Checkpoint.open(model)), read_documents(text), drawing["length"], sequences
        )
        protocol = {"model": model.name, "perplexity": measure(model, tokens), "sequences": len(tokens), **drawing}
        protocol |= {"repeats": repeats, "peer": peer, "cores": cores, "machine": platform.machine()}
        protocol |= {"slideconvert": __version__, "torch": torch.__version__}
        with tempfile.TemporaryDirectory() as work:
            saved = Path(work, "sequences.safetensors")
            save_file({NAME: draw(model, calibration, **drawing)}, saved)
            for pattern, scheme in wanted:
                ways = {}
                if peer_python:
                    for threads in peer_threads or (cores,):
                        command = peer_command(peer_python, model, saved, pattern, scheme, {**peer, "threads": threads})
                        ways[f"{PEER}, threads: {threads}"] = command
                for preset in filter(None, presets.split(",")):
                    ways[preset] = our_command(preset, model, calibration, pattern, scheme, drawing)
                with tempfile.TemporaryDirectory(dir=work) as outputs:
                    rows += compare(ways, Path(outputs), pattern, scheme, tokens, repeats)
                if out:
                    out.write_text(json.dumps({**protocol, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    except SlideConvertError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(rows, protocol))


def parts(case: str) -> tuple[str, str, str]:
    """'2_8/int8' cut at its slash."""
    return case.partition("/")


if __name__ == "__main__":
    main()
