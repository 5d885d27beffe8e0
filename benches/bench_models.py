"""The perplexity of real models after 2:L pruning in 8 bits, and whether both layouts compute the same model.

    python benches/bench_models.py models/llama models/qwen2 --text evaluation.jsonl --out results.json

Every model is converted with every scheme and pattern into both layouts, each verified against its source. The
dense layout is measured on all sequences, with activations as served (quantized per token) and left in float. The
slide layout is measured on the first few sequences, where it must give the dense layout's number to the last digit.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor

from slideconvert import __version__
from slideconvert.api.settings import choose_device
from slideconvert.calibrate.run import RunSettings
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.core.choices import ACTIVATIONS
from slideconvert.core.patterns import BlockPattern
from slideconvert.errors import SlideConvertError
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.hub.snapshot import open_folder
from slideconvert.models.load import load_model, load_tokenizer
from slideconvert.plan.linear_config import parse_linear_config
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import Recipe
from slideconvert.report import Report
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences

PATTERNS = ("2:4", "2:6", "2:8", "2:10", "2:inf")


@dataclass(frozen=True)
class Row:
    """One model, as it is (scheme "bf16", pattern "") or converted by magnitude.

    perplexity: by kind of activations, on all sequences. zeros: share of the decoder linears' weights.
    bytes: of the decoder linears, by layout. verified: tensors that were read back and compared with the source.
    """

    model: str
    scheme: str
    pattern: str
    perplexity: dict[str, float]
    zeros: float
    bytes: dict[str, int]
    verified: int


def measure_model(
    folder: Path,
    text: str,
    schemes: Sequence[str],
    patterns: Sequence[str],
    *,
    sequences: int,
    same: int,
    length: int,
    device: str,
) -> Iterator[Row]:
    """The model in `folder` as it is, then in every scheme and pattern.

    `same`: sequences on which the layouts are compared. SlideConvertError if they differ there, or if a conversion
    does not verify, or the text is too short.
    """
    source = Checkpoint.open(folder)
    tokens = token_sequences(load_tokenizer(source), read_documents(text), length, sequences)
    if len(tokens) < sequences:
        raise SlideConvertError(
            f"{text} has {len(tokens)} sequences for {folder.name}, not {sequences}", hint="ask for fewer"
        )
    value = perplexity(load_model(source, device=device), tokens)
    yield Row(folder.name, "bf16", "", dict.fromkeys(ACTIVATIONS, value), 0.0, {}, 0)
    for scheme in schemes:
        for pattern in map(BlockPattern.parse, patterns):
            with tempfile.TemporaryDirectory() as work:
                made = partial(_convert, folder, scheme, pattern, device)
                reports = {layout: made(layout, Path(work, layout)) for layout in ("slide", "dense")}
                values = {kind: _perplexity(Path(work), tokens, same, kind, device) for kind in ACTIVATIONS}
            sums = reports["dense"].totals
            yield Row(
                model=folder.name,
                scheme=scheme,
                pattern=str(pattern),
                perplexity=values,
                zeros=sums.zeros / sums.weights,
                bytes={layout: report.totals.linear_bytes_after for layout, report in reports.items()},
                verified=sum(report.verified or 0 for report in reports.values()),
            )


def _convert(folder: Path, scheme: str, pattern: BlockPattern, device: str, layout: str, out: Path) -> Report:
    recipe = Recipe(parse_linear_config(scheme=scheme, pattern=str(pattern), method="magnitude"), layout=layout)
    return convert(make_plan(open_folder(folder), recipe), out, settings=RunSettings(device))


def _perplexity(work: Path, tokens: Tensor, same: int, kind: str, device: str) -> float:
    """The dense layout's perplexity on all sequences, after both layouts have given one number on the first `same`."""
    slide, dense = (
        load_model(Checkpoint.open(work / layout), activations=kind, device=device) for layout in ("slide", "dense")
    )
    first = perplexity(slide, tokens[:same]), perplexity(dense, tokens[:same])
    if first[0] != first[1]:
        raise SlideConvertError(f"the layouts differ: perplexity {first[0]!r} slide, {first[1]!r} dense ({kind})")
    return perplexity(dense, tokens)


def markdown(rows: list[Row], protocol: dict[str, Any]) -> str:
    """The rows as a table, the protocol above it. Ratios are to the model as it is."""
    lines = [
        f"Perplexity, {protocol['sequences']} sequences of {protocol['length']} tokens; weights pruned by magnitude. "
        f"Slide = dense exactly on the first {protocol['same']} sequences of every row.",
        "",
        "| model | scheme | pattern | float activations | quantized | ratio | zeros | dense MB | slide MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    plain = {row.model: row.perplexity["float"] for row in rows if not row.pattern}
    for row in rows:
        values = [f"{row.perplexity[kind]:.3f}" for kind in ("float", "quantized")]
        cells = [row.model, row.scheme, row.pattern or "as it is", *values]
        cells += [f"{row.perplexity['quantized'] / plain[row.model]:.3f}", f"{row.zeros:.1%}" if row.pattern else ""]
        cells += [f"{row.bytes[layout] / 1e6:.2f}" if row.bytes else "" for layout in ("dense", "slide")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--text", required=True, help=".txt, .jsonl, .parquet, or the name of a data set.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="JSON file; the table lies beside it, as .md."
)
@click.option("--scheme", "schemes", multiple=True, default=("int8", "fp8"), show_default=True)
@click.option("--pattern", "patterns", multiple=True, default=PATTERNS, show_default=True)
@click.option("--sequences", default=160, show_default=True, type=click.IntRange(1))
@click.option("--length", default=512, show_default=True, type=click.IntRange(2))
@click.option(
    "--same", default=4, show_default=True, type=click.IntRange(1), help="Sequences to compare the layouts on."
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]")
def main(
    models: tuple[Path, ...], text: str, out: Path, schemes: tuple[str, ...], patterns: tuple[str, ...], device: str,
    **protocol: int,
) -> None:  # fmt: skip
    """Measure MODELS (folders) in every scheme and pattern."""
    made_with = {
        "slideconvert": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": choose_device(device),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
    rows: list[Row] = []
    try:
        for folder in models:
            for row in measure_model(folder, text, schemes, patterns, device=made_with["device"], **protocol):
                rows.append(row)
                click.echo(f"{row.model} {row.scheme} {row.pattern}: {row.perplexity}", err=True)
                result = {"text": Path(text).name, **protocol, **made_with, "rows": [asdict(row) for row in rows]}
                out.write_text(json.dumps(result, indent=1) + "\n")
                out.with_suffix(".md").write_text(markdown(rows, protocol))
    except SlideConvertError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(rows, protocol))


if __name__ == "__main__":
    main()
