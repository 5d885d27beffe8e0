"""Using models: download, eval, generate."""

from __future__ import annotations

from pathlib import Path

import click

from .common import (
    choose_device,
    device_option,
    echo_json,
    json_option,
    progress_bar,
    resolve_source,
    revision_option,
    show,
    verbosity_options,
)


@click.command("download")
@click.argument("hub_id")
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@revision_option
@json_option
@verbosity_options
def download_command(
    hub_id: str, directory: Path | None, revision: str | None, as_json: bool, verbose: bool, quiet: bool
) -> None:
    """Fetch the safetensors, config and tokenizer of HUB_ID into DIR (or the Hugging Face cache), every file checked.

    Run again after an interruption, it keeps the files that arrived whole.
    """
    from ..source import download

    with progress_bar(not (quiet or as_json)) as tell:
        snapshot = download(hub_id, directory, revision=revision, progress=tell)
    if as_json:
        echo_json({"id": snapshot.id, "revision": snapshot.revision, "path": str(snapshot.path)})
    else:
        click.echo(snapshot.path)
        if verbose:
            click.echo(f"{snapshot.id} at {snapshot.revision}", err=True)


@click.command("eval")
@click.argument("ckpts", metavar="CKPT...", nargs=-1, required=True)
@click.option("--text", required=True, help="A .txt, .jsonl or .parquet file, or a data set: NAME[:CONFIG]:SPLIT.")
@click.option("--windows", default=160, show_default=True, type=click.IntRange(1), help="Windows to measure.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(2), help="Tokens of a window.")
@click.option(
    "--activations", default="quantized", show_default=True, metavar="quantized|float", help="Quantized: as served."
)
@device_option
@json_option
@verbosity_options
def eval_command(
    ckpts: tuple[str, ...],
    text: str,
    windows: int,
    length: int,
    activations: str,
    device: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Measure the perplexity of checkpoints (ours in either layout, or any source model) on the same text."""
    from ..checkpoint.reader import Checkpoint
    from ..evaluate import measure
    from .tables import eval_table

    where = choose_device(device)
    checkpoints = {ckpt: Checkpoint.open(resolve_source(ckpt, None, quiet or as_json).path) for ckpt in ckpts}
    with progress_bar(not (quiet or as_json)) as tell:
        rows = measure(
            checkpoints, text, windows=windows, length=length, activations=activations, device=where, progress=tell
        )
    if as_json:
        echo_json({"text": text, "length": length, "activations": activations, "results": rows})
    else:
        show(eval_table(rows, length, activations))


@click.command("generate")
@click.argument("ckpt")
@click.option("--prompt", required=True, help="The text to continue.")
@click.option("--max-new-tokens", default=32, show_default=True, type=click.IntRange(1))
@click.option("--activations", default="quantized", show_default=True, metavar="quantized|float")
@device_option
@json_option
@verbosity_options
def generate_command(
    ckpt: str,
    prompt: str,
    max_new_tokens: int,
    activations: str,
    device: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Continue a prompt greedily with the checkpoint CKPT: on a GPU by its kernels, on a CPU in plain torch."""
    from ..checkpoint.reader import Checkpoint
    from ..evaluate import continue_text

    checkpoint = Checkpoint.open(resolve_source(ckpt, None, quiet or as_json).path)
    text = continue_text(checkpoint, prompt, most=max_new_tokens, activations=activations, device=choose_device(device))
    if as_json:
        echo_json({"prompt": prompt, "text": text})
    else:
        click.echo(prompt + text)
