"""Write a random checkpoint with the shapes of a real model, as BF16 safetensors, to convert without a download.

python benches/synthetic.py /tmp/llama-1b --model Llama-3.2-1B
"""

from __future__ import annotations

from pathlib import Path

import click

from slideconvert.bench.serving.random_model import write
from slideconvert.models.shapes import SHAPES


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(list(SHAPES), case_sensitive=False), default="Llama-3.2-1B")
@click.option("--layers", type=int, help="Another number of layers than the model has.")
def main(folder: Path, model: str, layers: int | None) -> None:
    """Write the checkpoint into FOLDER."""
    write(folder, model, layers)


if __name__ == "__main__":
    main()
