"""Decoding end to end in vLLM: checkpoints of ours against what stock vLLM makes of dense ones.

    slideconvert tune --model Qwen2.5-7B --host vllm                # at best before: or every load measures by itself
    python benches/bench_decode.py /tmp/decode --out decode.json    # again and again, until all rows are there

A Llama of a model's shapes with random weights, CUDA graphs, greedy, prefill not counted. Every row is a process of its
own. Rows that are in the JSON file are not run again, so the bench may be spread over several commands. One layer is
converted and then repeated: FOLDER holds one whole checkpoint at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

from slideconvert.kernels.bench_common import table

if __package__:
    from . import synthetic
else:
    import synthetic  # type: ignore[no-redef]

ENGINE = Path(__file__).with_name("decode_engine.py")
BATCHES = (1, 4, 16, 64)
GROUP = 16
MAGNITUDE = ("convert", "--method", "magnitude", "--scheme")


@dataclass(frozen=True)
class Row:
    """checkpoint, words: the converted layer and the command that makes it; no words: the source. stock: the row to
    compare it with. memory: the setting of that name; None: stock vLLM."""

    name: str
    checkpoint: str
    words: tuple[str, ...]
    stock: str
    memory: float | None = None

    @property
    def environment(self) -> dict[str, str]:
        if self.memory is None:
            return {"VLLM_PLUGINS": "none"}
        return {"SLIDESPARSE_MEMORY": str(self.memory)}


def rows() -> list[Row]:
    """Those of one checkpoint follow each other. Without memory for a second prepared weight the rule takes dense ways,
    which take the same time for every pattern."""
    found = [Row("bf16", "source", (), "bf16")]
    for scheme in ("int8", "fp8"):
        stock, words = f"{scheme} dense", (*MAGNITUDE, scheme, "--pattern")
        found.append(Row(stock, f"{scheme}-dense", (*words, "2_8", "--layout", "dense"), stock))
        for length in (4, 6, 8):
            for memory in (0.0, 1.0) if length == 8 else (1.0,):
                name = f"{scheme} 2:{length}" + (", memory 1" if memory else "")
                found.append(Row(name, f"{scheme}-2_{length}", (*words, f"2_{length}"), stock, memory))
    untrained = ("--block-epochs", "0", "--end-epochs", "0")
    words = ("convert", "--method", "rtn", "--scheme", "w4a16", "--pattern", f"1x{GROUP}:50%", *untrained)
    marlin = ("quantize", "--scheme", "w4a16", "--group-size", "128", "--symmetric")
    return [*found, Row("w4a16 Marlin", "w4a16", marlin, "bf16"), Row("w4a16 groups 50 %", "gqs", words, "bf16", 0.0)]


class Bench:
    """What is kept in a folder: the source and the converted ones, of one layer each, and one that is being served."""

    def __init__(self, folder: Path, model: str, layers: int, device: str) -> None:
        self.folder, self.model, self.layers, self.device = folder, model, layers, device
        self._served = ""

    def source(self, *, halved: bool = False) -> Path:
        path = self.folder / ("source-halved" if halved else "source")
        if not (path / "config.json").exists():
            if halved:
                halve(self.source(), path)
            else:
                synthetic.write(path, self.model, 1, self.device)
        return path

    def served(self, row: Row) -> Path:
        """The checkpoint of a row with all layers, in the place of the one before."""
        path = self.folder / "served"
        if self._served != row.checkpoint:
            one = self._converted(row) if row.words else self.source()
            shutil.rmtree(path, ignore_errors=True)
            synthetic.repeat(one, path, self.layers)
            self._served = row.checkpoint
        return path

    def _converted(self, row: Row) -> Path:
        out = self.folder / row.checkpoint
        if not (out / "config.json").exists():
            source, quick = self.source(halved=row.checkpoint == "gqs"), ("--device", self.device, "--no-verify", "-q")
            command = [sys.executable, "-m", "slideconvert", row.words[0], source, out, *row.words[1:], *quick]
            subprocess.run(command, check=True)
        return out


def halve(source: Path, out: Path, size: int = GROUP) -> None:
    """The weaker half of all groups of each linear is zero: a conversion without calibration then keeps the rest."""
    shutil.copytree(source, out)
    config = (out / "config.json").read_text()
    (out / "config.json").unlink()  # comes last, as a sign that all is there
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            groups = tensor.view(-1, size)
            groups[groups.float().norm(dim=1).argsort()[: len(groups) // 2]] = 0
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(config)


def measure(engine: Path, task: dict[str, Any], environment: dict[str, str], log: Path, limit: float) -> dict[str, Any]:
    """Run the engine in a process of its own. RuntimeError if it fails or takes longer than `limit` seconds."""
    asked, out = log.with_suffix(".task.json"), log.with_suffix(".out.json")
    asked.write_text(json.dumps(task))
    out.unlink(missing_ok=True)
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, engine, asked, out], stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done in {limit:.0f} s, see {log}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
                process.wait()
    if code or not out.exists():
        raise RuntimeError(f"failed with status {code}, see {log}")
    return {**json.loads(out.read_text()), **facts(log.read_text(errors="replace"))}


def facts(said: str) -> dict[str, Any]:
    """What vLLM and our plugin report in the log: GiB of the loaded model, and what runs."""
    loaded = re.search(r"Model loading took ([\d.]+) GiB", said)
    ours = [line.partition("SlideSparse")[2].lstrip(": ") for line in said.splitlines() if "SlideSparse" in line]
    return {"gib": float(loaded[1]) if loaded else None, "runs": list(dict.fromkeys(ours))}


def shown(found: dict[str, Any]) -> str:
    """The table of those rows that are there: tokens/s, and how many times the stock row's."""
    lines = []
    for row in rows():
        if row.name not in found:
            continue
        own, stock = found[row.name], found.get(row.stock, {"tokens_per_s": {}})["tokens_per_s"]
        cells = [
            f"{speed:,.0f}" + (f" ({speed / stock[batch]:.2f})" if batch in stock else "")
            for batch, speed in own["tokens_per_s"].items()
        ]
        lines.append([row.name, *cells, f"{own['gib']:.2f}" if own["gib"] else "", f"{own['load_s']:.0f}"])
    batches = next(iter(found.values()))["tokens_per_s"] if found else {}
    return table(["tokens/s (× stock)", *(f"batch {batch}" for batch in batches), "GiB", "load s"], lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON of all rows.")
@click.option("--model", type=click.Choice(list(synthetic.SHAPES)), default="qwen2.5-7b")
@click.option("--layers", type=int, help="Fewer than the model has.")
@click.option("--only", multiple=True, help="Rows whose names contain this; several times.")
@click.option("--batch", "batches", type=int, multiple=True, default=BATCHES)
@click.option("--prompt", default=32, help="Tokens of each prompt.")
@click.option("--output", default=128, help="Tokens generated after the first.")
@click.option("--repeats", default=3)
@click.option("--limit", default=240.0, help="Seconds for one row.")
@click.option(
    "--seconds", default=520.0, help="Start no row that may not be done by then; making its checkpoint is not counted."
)
@click.option("--device", default="cuda", help="Where checkpoints are made.")
@click.option("--engine", type=click.Path(path_type=Path), default=ENGINE, hidden=True)
def main(
    folder: Path, out: Path, model: str, layers: int | None, only: tuple[str, ...], limit: float, seconds: float,
    device: str, engine: Path, **asked: Any,
) -> None:  # fmt: skip
    """Fill OUT row by row, and print the table."""
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    layers = layers or synthetic.SHAPES[model]["num_hidden_layers"]
    task = {**asked, "batches": list(asked["batches"])}
    settings = {"model": model, "layers": layers, **task}
    kept = json.loads(out.read_text()) if out.exists() else {"settings": settings, "rows": {}}
    if kept["settings"] != settings:
        raise click.ClickException(f"{out} has rows of {kept['settings']}, not of {settings} (give another --out)")
    bench, late, failed = Bench(folder, model, layers, device), [], []
    for row in rows():
        if row.name in kept["rows"] or (only and not any(part in row.name for part in only)):
            continue
        if time.monotonic() + limit > end:
            late.append(row.name)
            continue
        log = folder / f"{row.name.replace(' ', '-')}.log"
        try:
            found = measure(engine, {**task, "model": str(bench.served(row))}, row.environment, log, limit)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            failed.append(row.name)
            click.echo(f"{row.name}: {error}", err=True)
            continue
        kept["rows"][row.name] = found
        kept["machine"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
        beside = out.with_suffix(".part")
        beside.write_text(json.dumps(kept, indent=1) + "\n")
        beside.replace(out)
        speeds = ", ".join(f"{batch}: {speed:,.0f}" for batch, speed in found["tokens_per_s"].items())
        click.echo(f"{row.name}: {speeds} tokens/s", err=True)
    click.echo(shown(kept["rows"]))
    if late:
        click.echo(f"no time left for {len(late)}: {', '.join(late)} (run again)", err=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
