"""Draw the calibration sequences for all sides of the comparison.

    python benches/calibration/sequences.py models/llama calibration.jsonl sequences.safetensors

Documents are tokenized without special tokens, each wrapped in begin and end, concatenated and cut into sequences.
All sequences of the text are permuted by a generator with a seed of its own; the first ones are used.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import InputError, SlideConvertError
from slideconvert.models.load import load_tokenizer
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences

NAME = "sequences"
"""The tensor's name in the file."""


def draw(model: Path, text: str, *, samples: int, length: int, seed: int) -> Tensor:
    """[samples, length] int64: sequences of `text` in the model's tokens. InputError if the text has too few."""
    sequences = token_sequences(load_tokenizer(Checkpoint.open(model)), read_documents(text), length)
    if len(sequences) < samples:
        raise InputError(
            f"{text} has {len(sequences)} sequences of {length} tokens, not {samples}", hint="ask for fewer"
        )
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    return sequences[order[:samples]]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("text")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--samples", default=128, show_default=True, type=click.IntRange(1))
@click.option("--length", default=512, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
def main(model: Path, text: str, out: Path, samples: int, length: int, seed: int) -> None:
    """Write sequences of TEXT in the tokens of MODEL into the safetensors file OUT."""
    try:
        drawn = draw(model, text, samples=samples, length=length, seed=seed)
    except SlideConvertError as error:
        raise click.ClickException(str(error)) from error
    save_file({NAME: drawn}, out)


if __name__ == "__main__":
    main()
