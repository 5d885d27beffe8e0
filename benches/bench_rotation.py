"""The time of a step of the search for rotations, on a random Llama of given shapes, and its peak of GPU memory.

    python benches/bench_rotation.py --device cuda

Two searches differ in their number of steps alone: the difference of their times has neither the warm-up nor the losses
before and after. Peak memory includes the weights of all layers, which stay on the device.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import torch
from safetensors.torch import save_file

from slideconvert.bench.serving.random_model import tensors
from slideconvert.calibrate.run import RunSettings
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.core.patterns import BlockPattern
from slideconvert.models.decoder import Decoder
from slideconvert.models.families import architecture_of
from slideconvert.models.shapes import SHAPES
from slideconvert.progress import silent
from slideconvert.rotate.problems import Problems
from slideconvert.rotate.rotations import Rotations
from slideconvert.rotate.search import Goal, search

VOCABULARY, SEQUENCES, LENGTH = 1024, 8, 256
"""Of the random text: its tokens are more than `hidden` of small models, and the rest of the Gram matrix is damped."""


def write(folder: Path, hidden: int, inner: int, layers: int, heads: tuple[int, int], size: int) -> Checkpoint:
    """A random Llama. heads: query and key-value heads, of `size` channels each."""
    config = {
        **SHAPES["Llama-3.2-1B"],
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": size,
        "vocab_size": VOCABULARY,
    }
    save_file(tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)


@click.command()
@click.option("--hidden", default=576, show_default=True)
@click.option("--inner", default=1536, show_default=True, help="Channels between gate/up_proj and down_proj.")
@click.option("--layers", default=30, show_default=True)
@click.option("--heads", type=(int, int), default=(9, 3), show_default=True, help="Query and key-value heads.")
@click.option("--head-size", default=64, show_default=True)
@click.option("--pattern", default="2_4", show_default=True)
@click.option("--steps", type=(int, int), default=(5, 25), show_default=True, help="Of the two searches.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    hidden: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    head_size: int,
    pattern: str,
    steps: tuple[int, int],
    repeats: int,
    device: str,
) -> None:
    """Search repeatedly and print milliseconds per step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder, hidden, inner, layers, heads, head_size)
        start = Rotations.identity(architecture_of(source.config), source.config, residual=True)
        problems = Problems(Decoder(source, torch.device(device)), start, RunSettings(device), folder / "problems")
        problems.collect(torch.randint(VOCABULARY, (SEQUENCES, LENGTH)), silent)

        def seconds(count: int, number: int) -> float:
            started = time.perf_counter()
            work = folder / f"{count}-{number}"
            work.mkdir()
            search(problems, start, Goal(BlockPattern.parse(pattern), count), device, work, silent)
            return time.perf_counter() - started

        seconds(2, 0)  # loads the problems
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        found = []
        for number in range(repeats):
            few, many = (seconds(count, number + 1) for count in steps)
            found.append((many - few) / (steps[1] - steps[0]) * 1e3)
    place = torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    shape = f"{layers} layers, hidden {hidden}, inner {inner}, heads {heads[0]}/{heads[1]} of {head_size}"
    click.echo(f"{shape}, {pattern}; {place}, torch {torch.__version__}")
    click.echo(f"ms per step: {', '.join(f'{one:.1f}' for one in found)}")
    if device != "cpu":
        click.echo(f"peak memory of the GPU: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
