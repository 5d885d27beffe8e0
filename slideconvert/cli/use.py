"""Using models: download, eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..api.options import EvaluateOptions, RevisionOptions, option
from .common import Folder, Model, echo_json, show
from .options import Display, ResultDisplay, command
from .progress import progress_bar


@dataclass(frozen=True)
class CommitDisplay(ResultDisplay):
    """Of a command whose details are the commit."""

    verbose: bool = option("Print the Hub id and the commit as well.", default=False, flag="-v/--verbose")


@dataclass(frozen=True)
class MetricDisplay(ResultDisplay):
    """Of a command whose details are metrics."""

    verbose: bool = option("Print every metric of each task.", default=False, flag="-v/--verbose")


@command("download", RevisionOptions, CommitDisplay)
@click.argument("hub_id")
@click.argument("directory", metavar="[DIR]", required=False, type=Folder())
def download_command(hub_id: str, directory: Path | None, options: RevisionOptions, display: Display) -> None:
    """Fetch the safetensors, config and tokenizer of HUB_ID into DIR (or the Hugging Face cache) and check every file.

    \b
      slideconvert download Qwen/Qwen2.5-0.5B qwen/

    If interrupted, run it again: it keeps the complete files.
    """
    from ..api.checkpoints import download

    with progress_bar(display.shown) as progress:
        snapshot = download(hub_id, directory, revision=options.revision, progress=progress)
    if display.as_json:
        echo_json({"id": snapshot.id, "revision": snapshot.revision, "path": str(snapshot.path)})
        return
    click.echo(snapshot.path)
    if display.verbose:
        click.echo(f"{snapshot.id} at {snapshot.revision}", err=True)


@command("eval", EvaluateOptions, MetricDisplay)
@click.argument("ckpts", metavar="CKPT...", nargs=-1, required=True, type=Model())
def eval_command(ckpts: tuple[str, ...], options: EvaluateOptions, display: Display) -> None:
    """Measure checkpoints (ours in any layout, or any source model) side by side.

    \b
      slideconvert eval MODEL out/ --text wiki.txt
      slideconvert eval MODEL out/ --tasks arc_easy,piqa

    Measures perplexity on a --text and the divergence from the first checkpoint, the answers to --tasks, or both.
    """
    from ..api.checkpoints import evaluate
    from ..errors import InputError
    from .scores import tasks_table, text_tables

    if display.verbose and not options.tasks:
        raise InputError("--verbose belongs to --tasks", hint="omit it: it shows every metric of a task")
    with progress_bar(display.shown) as progress:
        found = evaluate(list(ckpts), options, progress=progress)
    protocol, scores = found.protocol, found.tasks
    shown: dict[str, Any] = {"activations": protocol.activations, "notes": found.notes}
    if found.perplexity is not None:
        how = {"text": options.text, "length": protocol.length, "top": protocol.top, "served": options.served}
        shown |= {**how, "results": found.perplexity}
    if scores:
        shown |= {"lm_eval": scores.library, "limit": options.limit, "tasks": scores.rows}
    if display.as_json:
        echo_json(shown)
        return
    if found.perplexity is not None:
        for made in text_tables(found.perplexity, protocol):
            show(made)
    if scores:
        show(tasks_table(shown, every_metric=display.verbose))
    if not display.quiet:
        for note in found.notes:
            show(f"note  {note}")
