"""Decoding and prompts end to end in vLLM: checkpoints of ours against what stock vLLM makes of dense ones.

    slideconvert tune --model Qwen2.5-7B --host vllm                # at best before: or every load measures by itself
    python benches/bench_decode.py /tmp/decode --out decode.json    # again and again, until all rows are there

A Llama of a model's shapes with random weights, CUDA graphs, greedy. Decoding does not count the prompt. Every row is a
process of its own; several may start side by side (a start takes minutes, mostly of one CPU core), and then measure one
after the other. Rows that are in the JSON file are not run again, so the bench may be spread over several commands. One
layer is converted and then repeated: FOLDER holds the whole checkpoints of the rows that are starting.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file

from slideconvert.kernels.bench_common import table

if __package__:
    from . import synthetic
    from .decode_engine import MIXED_LONGEST
    from .decode_process import Engine
else:
    import synthetic  # type: ignore[no-redef]
    from decode_engine import MIXED_LONGEST  # type: ignore[no-redef]
    from decode_process import Engine  # type: ignore[no-redef]

ENGINE = Path(__file__).with_name("decode_engine.py")
BATCHES = (1, 4, 16, 64)
PREFILL = ("32x1024", "8x4096")
GROUP = 16
HALVED = "gqs"
"""The checkpoint that is made of the halved source."""
MAGNITUDE = ("convert", "--method", "magnitude", "--scheme")


@dataclass(frozen=True)
class Row:
    """checkpoint, words: the converted layer and the command that makes it; no words: the source. stock: the row to
    compare it with. memory: the setting of that name; None: stock vLLM. fuse: norms and gates with the quantization
    behind them, as by default."""

    name: str
    checkpoint: str
    words: tuple[str, ...]
    stock: str
    memory: float | None = None
    fuse: bool = True

    @property
    def environment(self) -> dict[str, str]:
        if self.memory is None:
            return {"VLLM_PLUGINS": "none"}
        return {"SLIDESPARSE_MEMORY": str(self.memory), "SLIDESPARSE_FUSE": str(self.fuse).lower()}


def rows() -> list[Row]:
    """Those of one checkpoint follow each other. Of 2:4 one prepared weight is the fastest for any number of tokens;
    without memory for a second one, the rule takes dense ways for the others, which take the same time for all."""
    settings = {4: ((0.0, True), (0.0, False)), 6: ((1.0, True),), 8: ((0.0, True), (1.0, True))}
    found = [Row("bf16", "source", (), "bf16")]
    for scheme in ("int8", "fp8"):
        stock, words = f"{scheme} dense", (*MAGNITUDE, scheme, "--pattern")
        found.append(Row(stock, f"{scheme}-dense", (*words, "2_8", "--layout", "dense"), stock))
        for length, some in settings.items():
            for memory, fuse in some:
                name = f"{scheme} 2:{length}" + (", memory 1" if memory else "") + ("" if fuse else ", unfused")
                found.append(Row(name, f"{scheme}-2_{length}", (*words, f"2_{length}"), stock, memory, fuse))
    untrained = ("--block-epochs", "0", "--end-epochs", "0")
    words = ("convert", "--method", "rtn", "--scheme", "w4a16", "--pattern", f"1x{GROUP}:50%", *untrained)
    marlin = ("quantize", "--scheme", "w4a16", "--group-size", "128", "--symmetric")
    return [*found, Row("w4a16 Marlin", "w4a16", marlin, "bf16"), Row("w4a16 groups 50 %", HALVED, words, "bf16", 0.0)]


class Bench:
    """What a folder holds: the source, of one layer, and the whole checkpoints of the rows that are starting."""

    def __init__(self, folder: Path, model: str, layers: int, device: str) -> None:
        self.folder, self.model, self.layers, self.device = folder, model, layers, device

    def source(self, *, halved: bool = False) -> Path:
        path = self.folder / ("source-halved" if halved else "source")
        if not (path / "config.json").exists():
            if halved:
                halve(self.source(), path)
            else:
                synthetic.write(path, self.model, 1, self.device)
        return path

    def whole(self, row: Row) -> Path:
        """The checkpoint of a row with all layers, made anew."""
        path = self.folder / f"served-{row.checkpoint}"
        shutil.rmtree(path, ignore_errors=True)
        if not row.words:
            return synthetic.repeat(self.source(), path, self.layers)
        one = self._converted(row)
        synthetic.repeat(one, path, self.layers)
        shutil.rmtree(one)
        return path

    def kv_bytes(self, tokens: int) -> int:
        """Of the cache for so many tokens of several sequences, a quarter more for blocks that are not full."""
        shape = synthetic.SHAPES[self.model]
        token = 2 * 2 * self.layers * shape["num_key_value_heads"] * shape["head_dim"]
        return max(2**28, tokens * token * 5 // 4)

    def _converted(self, row: Row) -> Path:
        out, source = self.folder / row.checkpoint, self.source(halved=row.checkpoint == HALVED)
        shutil.rmtree(out, ignore_errors=True)
        quick = ("--device", self.device, "--no-verify", "-q")
        subprocess.run(
            [sys.executable, "-m", "slideconvert", row.words[0], source, out, *row.words[1:], *quick], check=True
        )
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


def shown(found: dict[str, Any]) -> str:
    """The table of those rows that are there: tokens/s, and how many times the stock row's."""
    lines = []
    for row in rows():
        if row.name not in found:
            continue
        own, stock = found[row.name], found.get(row.stock, {})
        cells = [cell for kind in COLUMNS for cell in cells_of(own[kind], stock.get(kind, {}))]
        spread = f"{max(own['spread'].values()):.0%}"
        load = f"{own['load_s']:.0f}" if own["together"] == 1 else ""
        lines.append([row.name, *cells, spread, f"{own['gib']:.2f}" if own["gib"] else "", load])
    some = next(iter(found.values()), {kind: {} for kind in COLUMNS})
    names = [f"{what} {size}" for kind, what in COLUMNS.items() for size in some[kind]]
    return table(["tokens/s (× stock)", *names, "spread", "GiB", "load s"], lines)


COLUMNS = {"tokens_per_s": "batch", "prefill_per_s": "prompts", "mixed_per_s": "mixed"}


def cells_of(own: dict[str, float], stock: dict[str, float]) -> list[str]:
    return [f"{speed:,.0f}" + (f" ({speed / stock[size]:.2f})" if size in stock else "") for size, speed in own.items()]


class Results:
    """The rows that are measured, kept in a JSON file with the settings that they were measured with."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.kept = json.loads(out.read_text()) if out.exists() else {"settings": settings, "rows": {}}
        if self.kept["settings"] != settings:
            raise click.ClickException(
                f"{out} has rows of {self.kept['settings']}, not of {settings} (give another --out)"
            )

    @property
    def found(self) -> dict[str, Any]:
        return self.kept["rows"]

    def add(self, name: str, found: dict[str, Any]) -> None:
        self.found[name] = found
        self.kept["machine"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
        beside = self.out.with_suffix(".part")
        beside.write_text(json.dumps(self.kept, indent=1) + "\n")
        beside.replace(self.out)


def measured(
    bench: Bench, some: list[Row], script: Path, task: dict[str, Any], limit: float
) -> Iterator[tuple[Row, dict[str, Any] | Exception]]:
    """Start the rows side by side, and when all are ready or have failed measure one after the other."""
    longest = max(task["prompt"] + task["output"] + 1, MIXED_LONGEST if task["mixed"] else 0)
    prompts = [math.prod(map(int, one.split("x"))) for one in task["prefill"]]
    task = {**task, "kv_bytes": bench.kv_bytes(max(max(task["batches"]) * longest, *prompts))}
    with ExitStack() as open_engines:

        def started(same: list[Row]) -> list[tuple[Row, Engine | Exception]]:
            """Those of one checkpoint."""
            try:
                path = bench.whole(same[0])
            except subprocess.CalledProcessError as error:
                return [(row, error) for row in same]
            found: list[tuple[Row, Engine | Exception]] = []
            for row in same:
                name = row.name.replace(" ", "-")
                own = {"VLLM_CACHE_ROOT": str(bench.folder / f"cache-{name}"), **row.environment}
                log = bench.folder / f"{name}.log"
                engine = open_engines.enter_context(Engine(script, {**task, "model": str(path)}, own, log, limit))
                found.append((row, engine))
            for number, (row, engine) in enumerate(found):
                try:
                    engine.wait_until_ready()
                except RuntimeError as error:
                    engine.stop()
                    found[number] = (row, error)
            shutil.rmtree(path)
            return found

        checkpoints = [list(same) for _, same in groupby(some, lambda row: row.checkpoint)]
        bench.source()  # what several threads would else write at once
        if any(row.checkpoint == HALVED for row in some):
            bench.source(halved=True)
        with ThreadPoolExecutor(len(checkpoints)) as pool:
            ready = [one for found in pool.map(started, checkpoints) for one in found]
        for row, engine in ready:
            if isinstance(engine, Exception):
                yield row, engine
                continue
            try:
                yield row, {**engine.measure(), "together": len(some)}
            except RuntimeError as error:
                yield row, error


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON of all rows.")
@click.option("--model", type=click.Choice(list(synthetic.SHAPES)), default="qwen2.5-7b")
@click.option("--layers", type=int, help="Fewer than the model has.")
@click.option("--only", multiple=True, help="Rows whose names contain this; several times.")
@click.option("--batch", "batches", type=int, multiple=True, default=BATCHES)
@click.option("--prompt", default=32, help="Tokens of each prompt that is decoded after.")
@click.option("--output", default=128, help="Tokens generated after the first.")
@click.option("--prefill", multiple=True, default=PREFILL, help="Prompts and their tokens, all in one step: 32x1024.")
@click.option("--mixed", type=int, multiple=True, help="Requests of several lengths that arrive at once.")
@click.option("--repeats", default=5, help="The best counts; spread: how far the median is from it.")
@click.option("--together", default=1, help="Rows that start side by side; each needs GPU memory for its whole model.")
@click.option("--limit", default=240.0, help="Seconds for a start, and for the measurement of a row.")
@click.option(
    "--seconds", default=520.0, help="Start no row that may not be ready by then; making its checkpoint is not counted."
)
@click.option("--device", default="cuda", help="Where checkpoints are made.")
@click.option("--engine", type=click.Path(path_type=Path), default=ENGINE, hidden=True)
def main(
    folder: Path, out: Path, model: str, layers: int | None, only: tuple[str, ...], together: int, limit: float,
    seconds: float, device: str, engine: Path, **asked: Any,
) -> None:  # fmt: skip
    """Fill OUT row by row, and print the table."""
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    layers = layers or synthetic.SHAPES[model]["num_hidden_layers"]
    task = {**asked, **{name: list(asked[name]) for name in ("batches", "prefill", "mixed")}}
    kept = Results(out, {"model": model, "layers": layers, **task})
    wanted = [row for row in rows() if not only or any(part in row.name for part in only)]
    bench, late, failed = Bench(folder, model, layers, device), [], []
    missing = [row for row in wanted if row.name not in kept.found]
    for some in (missing[first : first + together] for first in range(0, len(missing), together)):
        if time.monotonic() + limit > end:
            late += [row.name for row in some]
            continue
        for row, found in measured(bench, some, engine, task, limit):
            if isinstance(found, Exception):
                failed.append(row.name)
                click.echo(f"{row.name}: {found}", err=True)
                continue
            kept.add(row.name, found)
            speeds = ", ".join(f"{batch}: {speed:,.0f}" for batch, speed in found["tokens_per_s"].items())
            click.echo(f"{row.name}: {speeds} tokens/s", err=True)
    click.echo(shown(kept.found))
    if late:
        click.echo(f"no time left for {len(late)}: {', '.join(late)} (run again)", err=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
