"""Using models: download, eval, generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    from ..hub.source import download

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
@click.option("--text", help="Perplexity on a .txt, .jsonl or .parquet file, or a data set: NAME[:CONFIG]:SPLIT.")
@click.option("--windows", default=160, show_default=True, type=click.IntRange(1), help="Windows of --text.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(2), help="Tokens of a window.")
@click.option("--tasks", metavar="NAME,NAME...", help="Tasks of lm-eval, an optional extra: arc_easy,hellaswag.")
@click.option(
    "--task-path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder with tasks of your own, as lm-eval's YAML files. Those that name Python code are refused.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first questions of each task.")
@click.option(
    "--shots", type=click.IntRange(0), help="Examples before each question; the task's own number if left out."
)
@click.option(
    "--activations", default="quantized", show_default=True, metavar="quantized|float", help="Quantized: as served."
)
@device_option
@json_option
@verbosity_options
def eval_command(
    ckpts: tuple[str, ...],
    text: str | None,
    windows: int,
    length: int,
    tasks: str | None,
    task_path: Path | None,
    limit: int | None,
    shots: int | None,
    activations: str,
    device: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Measure checkpoints (ours in either layout, or any source model) side by side.

    By the perplexity of a --text, by what they get right of --tasks, or by both.
    """
    from ..checkpoint.reader import Checkpoint
    from ..errors import InputError
    from ..evaluate.perplexity import measure
    from ..evaluate.tasks import load_tasks, measure_tasks
    from .tables import eval_table, tasks_table

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not (text or names):
        raise InputError("nothing to measure the checkpoints by", hint="give --text, --tasks or both")
    if not names and (task_path or limit or shots is not None):
        raise InputError("--task-path, --limit and --shots go with --tasks", hint="name the tasks with --tasks")
    where, shown = choose_device(device), not (quiet or as_json)
    checkpoints = {ckpt: Checkpoint.open(resolve_source(ckpt, None, not shown).path) for ckpt in ckpts}
    found: dict[str, Any] = {"activations": activations}
    with progress_bar(shown) as tell:
        loaded = load_tasks(names, folder=task_path, shots=shots, progress=tell) if names else None
        if text:
            rows = measure(
                checkpoints, text, windows=windows, length=length, activations=activations, device=where, progress=tell
            )
            found |= {"text": text, "length": length, "results": rows}
        if loaded:
            scores = measure_tasks(
                checkpoints, loaded, limit=limit, activations=activations, device=where, progress=tell
            )
            found |= {"lm_eval": scores.library, "limit": limit, "tasks": scores.rows, "notes": scores.notes}
    if as_json:
        echo_json(found)
        return
    if text:
        show(eval_table(found["results"], length, activations))
    if loaded:
        show(tasks_table(found, every_metric=verbose))
        if not quiet:
            for note in found["notes"]:
                click.echo(f"note  {note}")


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
    from ..evaluate.perplexity import continue_text

    checkpoint = Checkpoint.open(resolve_source(ckpt, None, quiet or as_json).path)
    text = continue_text(checkpoint, prompt, most=max_new_tokens, activations=activations, device=choose_device(device))
    if as_json:
        echo_json({"prompt": prompt, "text": text})
    else:
        click.echo(prompt + text)
