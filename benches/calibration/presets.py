"""The perplexity of a model after each preset, and the time of `slideconvert convert`.

    python benches/calibration/presets.py --models models --calibration calibration.jsonl --text evaluation.jsonl \\
        --case llama/2_8/int8 --case qwen2/2_4/bf16 --preset balanced --preset quality --samples 128

Perplexity of the first 160 sequences of 512 tokens, float32, weights as stored, activations not quantized. Calibration:
sequences of 512 tokens drawn with seed 0. Times are of whole commands: reading, drawing, solving, writing, verifying.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.evaluate.text import read_documents, token_sequences
from slideconvert.models.load import load_model, load_tokenizer

LENGTH, SEQUENCES = 512, 160


def measure(folder: Path, text: str, device: str) -> float:
    """The perplexity of a checkpoint by the protocol."""
    checkpoint = Checkpoint.open(folder)
    tokens = token_sequences(load_tokenizer(checkpoint), read_documents(text), LENGTH, SEQUENCES)
    return perplexity(load_model(checkpoint, activations="float", device=device), tokens)


@click.command()
@click.option("--models", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of models.")
@click.option("--calibration", required=True)
@click.option("--text", required=True)
@click.option("--case", "cases", multiple=True, required=True, help="MODEL/PATTERN/SCHEME[/CODES]")
@click.option("--preset", "presets", multiple=True, default=("fast", "balanced", "quality"))
@click.option("--samples", default=128)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(
    models: Path,
    calibration: str,
    text: str,
    cases: tuple[str, ...],
    presets: tuple[str, ...],
    samples: int,
    device: str,
) -> None:
    dense: dict[str, float] = {}
    click.echo(f"| model | pattern | numbers | preset, {samples} sequences | perplexity | dense | seconds |")
    click.echo("|---|---|---|---|---|---|---|")
    for case in cases:
        model, pattern, scheme, *codes = case.split("/")
        if model not in dense:
            dense[model] = measure(models / model, text, device)
        for preset in presets:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                words = ["--pattern", pattern, "--scheme", scheme, "--preset", preset, "--layout", "dense"]
                words += ["--codes", *codes] if codes else []
                words += ["--calibration", calibration, "--samples", str(samples), "--length", str(LENGTH)]
                command = [sys.executable, "-m", "slideconvert", "convert", str(models / model), str(out), *words]
                started = time.perf_counter()
                done = subprocess.run([*command, "--device", device, "--json"], capture_output=True, text=True)
                seconds = time.perf_counter() - started
                if done.returncode:
                    raise click.ClickException(done.stderr[-4000:])
                notes = json.loads(done.stdout)["notes"]
                found = measure(out, text, device)
            row = (
                model,
                pattern.replace("_", ":"),
                " ".join([scheme, *codes]),
                preset,
                f"{found:.3f}",
                f"{dense[model]:.3f}",
                f"{seconds:.1f}",
            )
            click.echo(f"| {' | '.join(row)} |")
            for note in notes:
                click.echo(f"{case} {preset}: {note}", err=True)


if __name__ == "__main__":
    main()
