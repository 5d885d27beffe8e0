"""What several commands share: arguments, timed progress, output for people and for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..errors import pick
from .progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import Stopwatch
    from .columns import Table

STARTED = "slideconvert.started"
"""In the context of a command: the time.monotonic() at which it began."""

INTERRUPTED = 130
"""The exit code of what Ctrl-C or SIGTERM ends, that of shells."""

SCHEMA = 1
"""The version of what commands print for machines: another one if a name goes or changes its meaning."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, also where Ctrl-C ends less than the command."""


class Word(click.Choice[str]):
    """One of some words, which the shell completes; a wrong one is answered with the nearest.

    kind: what the words are called. others: whether other words are taken as well.
    """

    def __init__(self, words: Iterable[str], kind: str, *, others: bool = False) -> None:
        super().__init__(list(words))
        self._kind, self._others = kind, others

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if self._others else pick(value, self.choices, self._kind)


class Model(click.ParamType[str]):
    """A folder, a GGUF file or a Hub id; the shell completes the first two."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Folder(click.Path):
    """The path of a folder, which need not exist; the shell completes folders."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


source_argument = click.argument("source", type=Model())
out_argument = click.argument("out", type=Folder())
checkpoint_argument = click.argument("ckpt", type=Folder())


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
        console.print(wrapped(note, console.width), style="table.caption", end="\n\n")


def _console() -> Console:
    from rich.console import Console

    # Names come from other people's files: [red] and :smile: in them are text.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = 120
    return console


def echo_json(value: Mapping[str, Any]) -> None:
    """Print a result for machines, with the version of its schema."""
    click.echo(json.dumps({"schema": SCHEMA, **value}, indent=1, ensure_ascii=False))
