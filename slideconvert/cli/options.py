"""Flags and help of a command, made of the option classes of slideconvert.api; each command parses once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from ..api.options import Option, Options, option
from ..errors import InputError
from .common import STARTED, Word

Function = TypeVar("Function", bound=Callable[..., Any])
OPTIONS, DISPLAY = "options", "display"
"""The arguments under which a command is handed its options."""
GENERAL = "General"
"""The heading of options that belong to no class: --help."""
LAST = ("Calibration", "Speed and size", "Compute", "Source", "Output", "Hub", "Display", GENERAL)
"""The headings that --help shows last, behind those of what a command does."""
DIRECTORY = "DIR"
"""The metavar of options that take a folder."""


@dataclass(frozen=True)
class Display(Options):
    """How a command prints its result."""

    HEADING: ClassVar[str] = "Display"

    as_json: bool = option("Print the result as JSON on stdout.", default=False, flag="--json")
    verbose: bool = option("Print a line for every linear.", default=False, flag="-v/--verbose")
    quiet: bool = option("No progress bars, no summary; errors only.", default=False, flag="-q/--quiet")

    def __post_init__(self) -> None:
        given = [one.flag for one in self.given()]
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} exclude each other", hint="give one of them")

    @property
    def shown(self) -> bool:
        """Whether people watch: progress bars and summaries are for them."""
        return not (self.as_json or self.quiet)


@dataclass(frozen=True)
class ResultDisplay(Display):
    """Of commands whose result is all that they print."""

    quiet: bool = option("No progress bars.", default=False, flag="-q/--quiet")


class HeadedOption(click.Option):
    """An option with the heading that it stands under in --help."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose --help shows its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row and isinstance(parameter, click.Option):
                rows.setdefault(getattr(parameter, "heading", GENERAL), []).append(row)
        for heading in sorted(rows, key=lambda heading: LAST.index(heading) if heading in LAST else -1):
            with formatter.section(heading):
                formatter.write_dl(rows[heading])


def command(
    name: str, options: type[Options] | None = None, display: type[Display] = Display, without: Sequence[str] = ()
) -> Callable[[Function], click.Command]:
    """A click command that is handed its options as one object of each class, as `options` and `display`.

    without: options of `display` that would have no effect, and are not offered.
    """
    jobs = {**({OPTIONS: options} if options else {}), DISPLAY: display}
    offered = {argument: [one for one in job.options() if one.name not in without] for argument, job in jobs.items()}

    def decorate(function: Function) -> click.Command:
        def run(**parameters: Any) -> None:
            click.get_current_context().meta[STARTED] = time.monotonic()
            for argument, job in jobs.items():
                values = {one.name: _value(one, parameters.pop(one.name)) for one in offered[argument]}
                parameters[argument] = job(**values)
            function(**parameters)

        arguments = reversed(getattr(function, "__click_params__", []))
        flags = [_click_option(one) for options in offered.values() for one in options]
        return HeadedCommand(name, callback=run, params=[*arguments, *flags], help=function.__doc__)

    return decorate


def _click_option(one: Option) -> HeadedOption:
    spec, about = one.spec, {"help": one.spec.help, "heading": one.heading}
    if one.type is bool and one.default is None:  # --this/--that, and neither if none is given
        return HeadedOption([one.flag, one.name], default=None, **about)
    if one.type is bool:
        return HeadedOption([*one.flag.split("/"), one.name], is_flag=True, **about)
    kind: Any = one.type
    if one.type is Path:
        kind = click.Path(path_type=Path, file_okay=spec.metavar != DIRECTORY)
    elif spec.choices:
        kind = Word(spec.choices, one.name.replace("_", " "), others=spec.others)
    elif spec.minimum is not None:
        kind = click.IntRange(spec.minimum)
    metavar = "|".join(spec.choices) if spec.choices else spec.metavar or None
    return HeadedOption([one.flag, one.name], type=kind, metavar=metavar, multiple=spec.several, **about)


def _value(one: Option, value: Any) -> Any:
    """The value of an option; a flag turns its default around, and of an option that was not given there is none."""
    if one.spec.several:
        return value or None
    return not value if one.default is True else value
