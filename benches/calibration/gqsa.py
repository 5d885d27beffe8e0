"""The perplexity of a model after each stage of GQSA: mask, BQPO and E2E-OQP.

    python benches/calibration/gqsa.py --models models --calibration calibration.jsonl --text evaluation.jsonl \\
        --case qwen2/gqsa/1x16:50% --case qwen2/saliency/1x16:50% --case qwen2/hessian/2:4 --jobs 4

A case is MODEL/METHOD/PATTERN[/FIELD=VALUE …], with fields of a recipe (scheme=w4a8, symmetric=true, preset=paper,
block_epochs=5) besides samples=1024. Pattern 1x16:50% takes half of the groups of 16; of a 2:L pattern group_size
says how many weights share a scale (16 by default). Perplexity of the first 160 sequences of 512 tokens,
float32, weights as stored, activations not quantized. Calibration: 128 sequences of 512 tokens drawn with seed 0.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from slideconvert.calibrate.engine import compress_layers
from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.run import RunSettings, block_schedule, generated_tokens, train_end_to_end
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.core.patterns import BlockPattern, GroupPattern, parse_pattern
from slideconvert.core.quantize import Weight
from slideconvert.core.weights import floats
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.hub.source import resolve
from slideconvert.models.load import load_model, load_tokenizer
from slideconvert.plan.plan import Plan, make_plan
from slideconvert.plan.recipe import parse_recipe
from slideconvert.progress import silent
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences

LENGTH, SEQUENCES = 512, 160


def plan_of(models: Path, calibration: str, case: str) -> Plan:
    """The conversion that a case names."""
    model, method, pattern, *more = case.split("/")
    fields = dict(word.split("=", 1) for word in more)
    text = {"text": calibration, "samples": fields.pop("samples", "128"), "length": str(LENGTH)}
    grouped = isinstance(parse_pattern(pattern), GroupPattern)
    common = {"scheme": "w4a16", "preset": "balanced" if grouped else "fast"}
    common |= {} if grouped else {"group_size": "16"}
    recipe = {**common, "method": method, "pattern": pattern, "layout": "dense", "calibration": text, **fields}
    return make_plan(resolve(str(models / model)), parse_recipe(recipe, case))


def measured(plan: Plan, weights: dict[str, Weight], text: str, device: str) -> float:
    """Perplexity of the source with these weights, by module name."""
    tokens = token_sequences(load_tokenizer(plan.source), read_documents(text), LENGTH, SEQUENCES)
    model = load_model(plan.source, activations="float", device=device)
    for name, weight in weights.items():
        model.get_parameter(f"{name}.weight").data.copy_(floats(weight))
    return perplexity(model, tokens)


def bits_per_weight(plan: Plan, weights: dict[str, Weight]) -> float:
    """Bits per weight of what must be stored: codes of non-zero weights, scales, zero points, and positions.

    Groups: as layout gqs stores them. 2:L: L - 2 codes per block, and whole bits for their positions.
    """
    total = stored = 0.0
    for linear in plan.linears:
        rows, columns = linear.stored.shape
        scheme, pattern = linear.scheme, linear.pattern
        of_group = 16 + (0 if scheme.symmetric else scheme.bits)
        total += rows * columns
        if isinstance(pattern, GroupPattern):
            stored += pattern.kept(linear.stored.shape) * (scheme.bits * scheme.group + of_group + 16) + 32 * rows
            continue
        assert isinstance(pattern, BlockPattern)
        length, left = pattern.block, pattern.most_nonzeros
        ways = length * (length - 1) // 2 if pattern.prunes else 1
        stored += rows * columns / length * (scheme.bits * left + (ways - 1).bit_length())
        stored += rows * columns / scheme.group * of_group
    return stored / total


def run_case(case: str, *, models: Path, calibration: str, text: str, device: str) -> list[dict[str, Any]]:
    """One row per stage."""
    torch.set_num_threads(2 if device == "cuda" else torch.get_num_threads())
    plan = plan_of(models, calibration, case)
    tokens: Tensor = calibration_tokens(plan.recipe.calibration, plan.source)
    settings, recovery = RunSettings(device), plan.recovery
    rows: list[dict[str, Any]] = []

    def add(stage: str, weights: dict[str, Weight], seconds: float) -> None:
        found = measured(plan, weights, text, device)
        bits = bits_per_weight(plan, weights)
        rows.append({"case": case, "stage": stage, "perplexity": found, "seconds": seconds, "bits": bits})

    with tempfile.TemporaryDirectory() as folder:
        if plan.generated:
            tokens = torch.cat([generated_tokens(plan, tokens, settings, Path(folder), silent), tokens])
        started = time.perf_counter()

        def compress(trained: bool) -> list[LayerResult]:
            schedule = block_schedule(recovery) if recovery and trained else None
            return [
                result
                for _, result in compress_layers(plan, tokens, settings.stream_options(Path(folder)), recovery=schedule)
            ]

        found = compress(trained=False)
        add("mask", named(found), time.perf_counter() - started)
        if recovery and recovery.block_epochs:
            started = time.perf_counter()
            found = compress(trained=True)
            add("BQPO", named(found), time.perf_counter() - started)
        if recovery and recovery.end_epochs:
            started = time.perf_counter()
            made, _ = train_end_to_end(plan, found, tokens, settings, recovery, Path(folder), silent)
            add("E2E", made, time.perf_counter() - started)
    return rows


def named(found: list[LayerResult]) -> dict[str, Weight]:
    """Weights by module name."""
    return {
        f"model.layers.{number}.{submodule}": weight
        for number, result in enumerate(found)
        for submodule, weight in result.weights.items()
    }


@click.command()
@click.option("--models", required=True, type=click.Path(exists=True, path_type=Path), help="Folder of models.")
@click.option("--calibration", required=True)
@click.option("--text", required=True)
@click.option("--case", "cases", multiple=True, help="MODEL/METHOD/PATTERN[/FIELD=VALUE ...]")
@click.option("--cases", "listed", type=click.Path(exists=True, path_type=Path), help="A file with a case a line.")
@click.option("--jobs", default=1, help="Cases at once.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--out", type=click.Path(path_type=Path), help="JSON lines.")
def main(
    models: Path, calibration: str, text: str, cases: tuple[str, ...], listed: Path | None, jobs: int, device: str,
    out: Path | None,
) -> None:  # fmt: skip
    all_cases = [*cases, *(listed.read_text().split() if listed else [])]
    work = partial(run_case, models=models, calibration=calibration, text=text, device=device)
    click.echo("| case | stage | perplexity | bits per weight | seconds |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(work, case) for case in all_cases]):
            for row in done.result():
                click.echo(
                    f"| {row['case']} | {row['stage']} | {row['perplexity']:.3f} | {row['bits']:.2f} | "
                    f"{row['seconds']:.1f} |"
                )
                if out:
                    with out.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
