"""What several commands share: arguments, the progress bar, output for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..progress import Progress, Stopwatch

source_argument = click.argument("source")
out_argument = click.argument("out", type=click.Path(path_type=Path))
checkpoint_argument = click.argument("ckpt", type=click.Path(path_type=Path))


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """A progress callback that draws bars with the time left on stderr; does nothing if not shown."""
    if not shown:
        yield lambda stage, done, total: None
        return
    from rich import progress as rich_progress
    from rich.console import Console

    columns = [
        rich_progress.TextColumn("{task.description:>10}"),
        rich_progress.BarColumn(40),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
    ]
    tasks: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


@contextmanager
def timed_progress(shown: bool, device: str) -> Iterator[Stopwatch]:
    """progress_bar that keeps what each stage took, on a GPU its peak of memory as well."""
    import torch

    from ..progress import Stopwatch

    def peak() -> int:
        found = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return found

    with progress_bar(shown) as tell:
        if device.startswith("cuda"):
            torch.cuda.init()  # what it has used cannot be asked before
            yield Stopwatch(tell, peak)
        else:
            yield Stopwatch(tell)


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
