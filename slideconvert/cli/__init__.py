"""The command line: parses, calls the library, prints. Nothing else in the package prints or exits.

Commands are imported when they are called, and they import the library when they run, so that --help is instant.
"""

from __future__ import annotations

import errno
import importlib
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import CalibrationWarning, InputError, SlideConvertError, one_line, pick, printable
from ..launched import rank, several

COMMANDS = {
    "download": ("use", "Fetch a model from the Hub, pinned to a commit and checked."),
    "plan": ("convert", "Show what a conversion would do; writes nothing."),
    "convert": ("convert", "Prune, quantize, pack and verify a model."),
    "rotate": ("rotate", "Rotate a model's channels so that pruning loses less."),
    "allocate": ("allocate", "Choose patterns layer by layer for a speed-up or a density."),
    "sparsify": ("stages", "Prune to a 2:L pattern, or prune whole groups."),
    "quantize": ("stages", "Quantize to 8 or 4 bits."),
    "slide": ("stages", "Store quantized 2:L weights as 2:4 windows."),
    "relayout": ("stages", "Convert a checkpoint to another layout, exactly."),
    "verify": ("look", "Read a checkpoint back and check every weight."),
    "inspect": ("look", "Show the content of a checkpoint, layer by layer."),
    "compare": ("compare", "Put checkpoints side by side: size, quality, speed, layers."),
    "eval": ("use", "Compare checkpoints by perplexity and tasks."),
    "generate": ("talk", "Continue a prompt with a checkpoint, or answer it."),
    "chat": ("talk", "Talk to a checkpoint that has a chat template."),
    "push": ("push", "Publish a verified checkpoint on the Hub."),
    "tune": ("tune", "Measure the kernels on this GPU, to choose without measuring."),
    "bench kernel": ("bench", "Time products alone, dense and of every pattern."),
    "bench layer": ("bench", "Time whole linears, as a model runs them."),
    "bench serve": ("bench", "Serve checkpoints in vLLM, against dense ones."),
    "bench compare": ("bench", "Compare two runs, machines or commits."),
    "recipes": ("look", "List the recipes that slideconvert provides."),
    "doctor": ("look", "Show what this machine can run."),
}
"""Each command's module and the line that --help shows for it."""
GROUPS = {"bench": "Benchmarks of kernels, layers and servers on this device."}
"""What commands of two words have in common."""

SHARED = ("convert", "sparsify", "quantize", "slide", "relayout")
"""The commands whose work the processes of a launch share."""

RESUMED = (*SHARED, "rotate")
"""The commands that go on with --resume."""
AGAIN = ("download", "push", "tune", "bench kernel", "bench layer", "bench serve")
"""The commands that go on when they are run again."""

DEFECT = 70
"""The exit code of errors that nobody named (EX_SOFTWARE of sysexits.h)."""


def find_command(name: str) -> click.Command | None:
    """A command by its name in COMMANDS, or a group by its name in GROUPS; None for other words."""
    if name in GROUPS:
        return Commands(name, prefix=f"{name} ", help=GROUPS[name], context_settings=SETTINGS)
    if name not in COMMANDS:
        return None
    function = f"{name.replace(' ', '_')}_command"
    command: click.Command = getattr(importlib.import_module(f".{COMMANDS[name][0]}", __name__), function)
    return command


class Commands(click.Group):
    """A group that knows its commands by name and loads their modules when they are needed.

    prefix: what the names of its commands begin with, and are listed without.
    """

    def __init__(self, *args: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        inside = [name.removeprefix(self._prefix).split()[0] for name in COMMANDS if name.startswith(self._prefix)]
        return list(dict.fromkeys(inside))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return find_command(self._prefix + name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not (ctx.resilient_parsing or args[0].startswith("-")):
            pick(args[0], self.list_commands(ctx), f"{self._prefix}command")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = [self._prefix + name for name in self.list_commands(ctx)]
        lines = {name: GROUPS.get(name) or COMMANDS[name][1] for name in names}
        with formatter.section("Commands"):
            formatter.write_dl([(name.removeprefix(self._prefix), line) for name, line in lines.items()])


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="slideconvert")
@click.pass_context
def group(context: click.Context) -> None:
    """BF16 language models in, verified 2:L sparse INT8/FP8 SlideSparse checkpoints out.

    \b
      slideconvert convert meta-llama/Llama-3.2-1B out/ --scheme int8 --pattern 2_8
      slideconvert verify out/
      slideconvert eval meta-llama/Llama-3.2-1B out/ --text wiki.txt
    """
    if several() and context.invoked_subcommand not in SHARED:
        raise InputError(
            f"{context.invoked_subcommand} runs in one process, and WORLD_SIZE says that there are several",
            hint=f"run it without torchrun; processes share {', '.join(SHARED)}",
        )


def _for_machines(error: Mapping[str, str | int]) -> None:
    """An error as the result on stdout, if --json asks for results there."""
    from .common import echo_json

    if "--json" in sys.argv:
        echo_json({"error": error})


def _unplanned(error: Exception, code: int) -> dict[str, str | int]:
    """What SlideConvertError.to_json says, of another error."""
    what = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return {"kind": type(error).__name__, "what": one_line(what), "hint": "", "exit_code": code}


def _error() -> str:
    """The beginning of a line about an error of this process."""
    return f"error: rank {rank()}: " if several() else "error: "


def _way_on() -> str:
    """How the command of this process goes on after it has ended early, behind a semicolon; "" if nothing is kept."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), "")
    if name in RESUMED:
        return "; continue it with --resume"
    return "; run it again to go on" if name in AGAIN else ""


def _report_defect(error: Exception) -> None:
    """One line on an error that nobody named, and its traceback if -v asks for it."""
    if {"-v", "--verbose"} & set(sys.argv):
        click.echo(printable(traceback.format_exc()), err=True)
    reason = one_line(str(error))[:300]
    _tell(
        f"{_error()}{type(error).__name__}: {reason} (a defect of slideconvert: run it again with -v and report what "
        f"it shows{_way_on()})"
    )
    _for_machines(_unplanned(error, DEFECT))


@contextmanager
def _ended_like_an_interrupt() -> Iterator[None]:
    """SIGTERM, which ends a job of Slurm or a container, as Ctrl-C does: files are closed, and the way on is named."""

    def interrupt(*_: object) -> None:
        from .common import Terminated

        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(others: Callable[..., None]) -> Callable[..., None]:
    """Our warnings as one line on stderr, unless -q asks for errors only; `others` shows those of libraries."""

    def show(message: Warning | str, category: type[Warning], *words: Any, **more: Any) -> None:
        if not issubclass(category, CalibrationWarning):
            others(message, category, *words, **more)
        elif not {"-q", "--quiet"} & set(sys.argv):
            _tell(f"warning: {one_line(str(message))}")

    return show


def _tell(line: str) -> None:
    """One line on stderr; on a terminal as many as it needs, broken between words."""
    if sys.stderr.isatty():
        from .columns import wrapped

        line = wrapped(line, shutil.get_terminal_size().columns)
    click.echo(line, err=True)


def main() -> NoReturn:
    """Run a command. Exit codes: 0 done, 1 a conversion or check failed, 2 wrong usage or input, 70 a defect of
    slideconvert, 75 what the same command may do later (the network, the Hub or the space on a disk fails), 130
    interrupted."""
    warnings.showwarning = _show_warning(warnings.showwarning)
    try:
        with _ended_like_an_interrupt():
            group(prog_name="slideconvert", standalone_mode=False)
    except SlideConvertError as error:
        if rank() == 0 or not error.elsewhere:
            _tell(f"{'error: ' if error.elsewhere else _error()}{one_line(str(error))}")
            if not error.told:
                _for_machines(error.to_json())
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        _for_machines(_unplanned(error, error.exit_code))
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        from .common import INTERRUPTED

        click.echo(f"interrupted{_way_on()}", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has left
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            _report_defect(error)
            sys.exit(DEFECT)
        name = one_line(str(error.filename))
        _tell(f"error: {name[:60]}… ({len(name)} characters): this path or a name in it is too long")
        _for_machines(_unplanned(error, 2))
        sys.exit(2)
    except Exception as error:  # the last net: what no reader and no stage has named
        _report_defect(error)
        sys.exit(DEFECT)
    sys.exit(0)
