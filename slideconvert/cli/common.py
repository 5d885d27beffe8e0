"""What several commands share: options, the progress bar, output for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from ..hub.snapshot import Snapshot
    from ..progress import Progress, Stopwatch

Command = TypeVar("Command", bound=Callable[..., Any])


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order they are shown."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


source_argument = click.argument("source")
out_argument = click.argument("out", type=click.Path(path_type=Path))
checkpoint_argument = click.argument("ckpt", type=click.Path(path_type=Path))
revision_option = click.option("--revision", help="Branch, tag or commit of a Hub id.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", help="Where to compute."
)
compute_options = options(
    device_option,
    click.option(
        "--keep-on",
        default="device",
        show_default=True,
        metavar="device|cpu|disk",
        help="Where calibration keeps hidden states.",
    ),
    click.option(
        "--batch-tokens", type=click.IntRange(1), help="Calibration tokens at once.  [default: 4096; 8192 on a GPU]"
    ),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        metavar="auto|float32|bfloat16",
        help="In which calibration runs the model; auto: bfloat16 where it is fast.",
    ),
)
verbosity_options = options(
    click.option("-v", "--verbose", is_flag=True, help="Say more: every linear."),
    click.option("-q", "--quiet", is_flag=True, help="No progress, no summary; errors only."),
)
run_options = options(
    compute_options,
    click.option("--offload", is_flag=True, help="Keep the optimizer of preset quality in CPU memory."),
    click.option("--resume", is_flag=True, help="Continue an interrupted run of the same settings."),
    click.option("--text", help="Measure the perplexity of source and output on this text, for the reports."),
    click.option("--windows", default=160, show_default=True, type=click.IntRange(1), help="Windows of --text."),
    click.option("--no-verify", is_flag=True, help="Do not re-read the output; the report says so."),
    json_option,
    verbosity_options,
)

calibration_options = options(
    click.option("--calibration", metavar="TEXT", help="Calibration text: a file or data set.  [default: C4]"),
    click.option("--samples", type=int, help="Calibration windows.  [default: 128]"),
    click.option("--length", type=int, help="Tokens of a window.  [default: 2048, or the model's longest]"),
    click.option("--seed", type=int, help="Which windows are drawn.  [default: 0]"),
)
CALIBRATION = ("samples", "length", "seed")
"""The options of `calibration_options` that are words of a recipe's calibration; --calibration is its text."""


def calibration_words(said: dict[str, Any]) -> dict[str, str]:
    """Takes the calibration options out of `said` and gives them as the words of a recipe's calibration."""
    text = said.pop("calibration")
    words = {word: said.pop(word) for word in CALIBRATION}
    return {
        **({"text": text} if text else {}),
        **{word: str(value) for word, value in words.items() if value is not None},
    }


def choose_device(name: str) -> str:
    """'auto' -> cuda if there is one, else cpu. InputError for a device that is not there."""
    import torch

    from ..errors import InputError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InputError(f"unknown device '{name}'", hint="auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices", hint="--device cpu"
        )
    return name


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
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(table)


def echo_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def resolve_source(source: str, revision: str | None, quiet: bool) -> Snapshot:
    """A folder as it is, a Hub id downloaded, with a progress bar."""
    from ..hub.source import resolve

    with progress_bar(not quiet) as tell:
        return resolve(source, revision=revision, progress=tell)
