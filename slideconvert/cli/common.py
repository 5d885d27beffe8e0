"""What several commands share: arguments, timed progress, output for people and for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import Stopwatch
    from .columns import Table

STARTED = "slideconvert.started"
"""In the context of a command: the time.monotonic() at which it began."""

source_argument = click.argument("source")
out_argument = click.argument("out", type=click.Path(path_type=Path))
checkpoint_argument = click.argument("ckpt", type=click.Path(path_type=Path))


@contextmanager
def timed_progress(shown: bool, device: str | None) -> Iterator[Stopwatch]:
    """progress_bar that keeps what each stage took since the command began, on a GPU its peak of memory as well. The
    first stage is the import of libraries."""
    from ..progress import Stopwatch

    with progress_bar(shown) as tell:
        watch = Stopwatch(tell, started=click.get_current_context().meta[STARTED])
        watch("import", 0, 1)
        import torch

        from ..api.settings import choose_device

        chosen = choose_device(device)

        def peak() -> int:
            found = torch.cuda.max_memory_allocated(chosen)
            torch.cuda.reset_peak_memory_stats(chosen)
            return found

        if chosen.startswith("cuda"):
            torch.cuda.init()  # what it has used cannot be asked before
            watch.device_peak = peak
        watch("import", 1, 1)
        yield watch


def show(shown: Table | str) -> None:
    """Print a table or text for people, as wide as the terminal; where there is none, $COLUMNS or 120 columns wide."""
    from .columns import wrapped

    console = _console()
    words, style = (shown, "") if isinstance(shown, str) else (shown.title, "table.title")
    console.print(wrapped(words, console.width), style=style, overflow="ignore", crop=False)
    if isinstance(shown, str):
        return
    drawn, left_out = shown.fitted(console.width)
    console.print(drawn)
    if left_out:
        note = f"left out in {console.width} columns: {', '.join(left_out)} (--json and wider terminals show them)"
        console.print(wrapped(note, console.width), style="table.caption")


def _console() -> Console:
    from rich.console import Console

    # Names come from other people's files: [red] and :smile: in them are text.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = 120
    return console


def echo_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
