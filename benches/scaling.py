"""Seconds of a conversion by stage on 1, 2 … ranks of this host.

    python -m benches.scaling /tmp/scaling --model Llama-3.2-3B --ranks 1,2 -- --preset balanced --pattern 2_8
    python -m benches.scaling /tmp/scaling --layers 2 --ranks 1,2,4 --device cpu -- --method magnitude

The model has random weights with the shapes of a real one, and the text random words. What stands behind -- are words
of `slideconvert convert`. Results are in FOLDER/scaling.json, a row for each run; a run whose row is there is not
repeated, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from benches.calibration.memory import write_source, write_text
from slideconvert.checkpoint.staging import write_file
from slideconvert.models.shapes import SHAPES


def measured(source: Path, out: Path, count: int, words: list[str]) -> dict[str, Any]:
    """Seconds of a conversion on `count` ranks, in all and by stage."""
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, "-m", "slideconvert", "convert", str(source), str(out), *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    shutil.rmtree(out)
    stages = {name: stage["seconds"] for name, stage in found["stages"].items()}
    return {"ranks": count, "seconds": found["seconds"], "stages": stages}


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each stage, a column for each number of ranks, and how many times as fast the last is."""
    stages = list(dict.fromkeys(name for row in rows for name in row["stages"]))
    lines = [f"{'':12}" + "".join(f"{row['ranks']:>9}" for row in rows)]
    for name in ("all", *stages):
        seconds = [row["seconds"] if name == "all" else row["stages"].get(name, 0.0) for row in rows]
        faster = f"{seconds[0] / seconds[-1]:9.2f}×" if seconds[-1] else ""
        lines.append(f"{name:12}" + "".join(f"{one:9.1f}" for one in seconds) + faster)
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1)
@click.option("--model", type=click.Choice(list(SHAPES)), default="Llama-3.2-1B", show_default=True)
@click.option("--layers", type=int, help="Another number of layers than the model has.")
@click.option("--ranks", default="1,2", help="Numbers of ranks.")
@click.option("--samples", default=128)
@click.option("--length", default=2048)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(
    folder: Path, words: tuple[str, ...], model: str, layers: int | None, ranks: str, device: str, **text_of: int
) -> None:
    """Write a model into FOLDER, convert it with WORDS on each number of ranks, and print a table."""
    source, results = folder / f"{model}-{layers or 'all'}", folder / "scaling.json"
    if not (source / "tokenizer_config.json").is_file():  # written last
        write_source(source, model, layers, device)
    job = [*words, "--device", device]
    if "--method" not in words:
        text = write_text(folder / "text.jsonl", 2 * text_of["samples"] * text_of["length"])
        job += ["--calibration", str(text), *(str(word) for name in text_of for word in (f"--{name}", text_of[name]))]
    what = {"model": source.name, "words": job, "torch": torch.__version__}
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.is_file() else []
    for count in map(int, ranks.split(",")):
        if not any(row["ranks"] == count and row["job"] == what for row in rows):
            rows.append({**measured(source, folder / "out", count, job), "job": what})
            write_file(results, (json.dumps(rows, indent=1) + "\n").encode())
    click.echo(table([row for row in rows if row["job"] == what]))


if __name__ == "__main__":
    main()
