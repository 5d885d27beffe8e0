"""A forward pass of a whole model in transformers, by backend and number of tokens: eager, and as a CUDA graph.

    python benches/bench_forward.py /tmp/llama-1b --scheme int8 --pattern 2:8

SOURCE is a BF16 checkpoint (benches/synthetic.py makes one), which is measured as well. Eager times include the work of
the host, as for a user of transformers; graph times are those of the device alone.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from slideconvert.convert.pipeline import convert
from slideconvert.hub.snapshot import open_folder
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import parse_recipe

TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
RUNS = 9


def median_milliseconds(call: Callable[[], Any]) -> float:
    found = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1e3)
    return statistics.median(found)


def measure(model: Any) -> dict[int, tuple[float, float]]:
    """Tokens -> milliseconds of a forward pass of the decoder, eager and as a graph."""
    found = {}
    for tokens in TOKENS:
        # As many sequences as a server would batch to decode; prompts of at most 1024 tokens.
        length = 1 if tokens <= 64 else min(tokens, 1024)
        ids = torch.randint(0, 1000, (tokens // length, length), device="cuda")

        def call(ids: torch.Tensor = ids) -> Any:
            return model.model(input_ids=ids, use_cache=False).last_hidden_state

        for _ in range(3):
            call()
        eager = median_milliseconds(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        found[tokens] = eager, median_milliseconds(graph.replay)
        del graph
    return found


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--scheme", default="int8")
@click.option("--pattern", "patterns", multiple=True, default=("2:8",))
@click.option("--backend", "backends", multiple=True, default=("dense", "cusparselt", "auto"))
@click.option("--out", type=click.Path(path_type=Path))
def main(source: Path, scheme: str, patterns: tuple[str, ...], backends: tuple[str, ...], out: Path | None) -> None:
    """Convert SOURCE to every pattern, measure it on every backend, print a table."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        folders = {"bf16": source}
        for pattern in patterns:
            folders[pattern] = Path(work) / pattern.replace(":", "_")
            words = {"scheme": scheme, "pattern": pattern, "method": "magnitude"}
            convert(make_plan(open_folder(source), parse_recipe(words, "bench")), folders[pattern], verify=False)
        for name, folder in folders.items():
            for backend in ("",) if name == "bf16" else backends:
                config = AutoConfig.from_pretrained(folder)
                if backend:
                    config.slidesparse_runtime = {"backend": backend}
                started = time.perf_counter()
                model = AutoModelForCausalLM.from_pretrained(
                    folder, config=config, dtype=torch.bfloat16, device_map="cuda"
                )
                loading = time.perf_counter() - started
                rows[f"{name} {backend}".strip()] = {
                    "loading_seconds": loading,
                    "memory_bytes": torch.cuda.memory_allocated(),
                    "milliseconds": measure(model),
                }
                del model
                gc.collect()
                torch.cuda.empty_cache()
    click.echo(f"{torch.cuda.get_device_name()} · torch {torch.__version__} · {scheme}; eager / graph, ms")
    click.echo("| | load, s | GB | " + " | ".join(f"M={tokens}" for tokens in TOKENS) + " |")
    click.echo("| --- |" + " ---: |" * (len(TOKENS) + 2))
    for name, row in rows.items():
        cells = [f"{eager:.1f} / {graph:.2f}" for eager, graph in row["milliseconds"].values()]
        numbers = [f"{row['loading_seconds']:.1f}", f"{row['memory_bytes'] / 1e9:.2f}"]
        click.echo(f"| {name} | " + " | ".join([*numbers, *cells]) + " |")
    if out:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
