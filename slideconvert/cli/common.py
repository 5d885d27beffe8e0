"""What several commands share: arguments, timed progress, output for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..progress import Stopwatch

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


def show(table: Table | str) -> None:
    """Print a table or a line for people: tables as wide as the terminal, 120 columns when there is none."""
    _console().print(table)


def width() -> int:
    """Columns of what `show` prints on."""
    return _console().width


def _console() -> Console:
    from rich.console import Console

    # Names come from other people's files: [red] and :smile: in them are text.
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=120)


def echo_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
