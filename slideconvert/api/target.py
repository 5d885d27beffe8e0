"""Options to a target, a speed-up or a density, and to the times of a GPU that belong to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..allocate.choose import DensityTarget, SpeedTarget, Target
from ..allocate.expected import Expected, expected_speedup
from ..allocate.faster import Faster, faster_than_dense
from ..allocate.rows import read_rows
from ..allocate.speed import DEFAULT_TOKENS, SpeedTable
from ..errors import InputError, NotMeasuredError, pick
from .options import TargetOptions, TimesOptions

if TYPE_CHECKING:
    from ..plan.linear import LinearPlan


@dataclass(frozen=True)
class Expectation:
    """What a table of times promises for a plan.

    found: the times, None if there are none: `missing` then says why. faster: the ways out of a plan that is slower
    than dense, None for others.
    """

    table: SpeedTable
    tokens: int
    found: Expected | None
    faster: Faster | None
    missing: NotMeasuredError | None


def target_of(options: TargetOptions, *, planned: bool = False) -> Target | None:
    """The target that the options ask for, None for none. InputError for options that do not go together. planned: of
    a plan, which shows by the times of a GPU what any recipe gains."""
    if options.target_speedup is None:
        unused = [] if planned else [one for one in TimesOptions.options() if getattr(options, one.name) is not None]
        if unused:
            raise InputError(
                f"{unused[0].flag} belongs to --target-speedup",
                hint="slideconvert plan --gpu shows what any recipe gains",
            )
        return None if options.density is None else DensityTarget(options.density)
    if options.density is not None:
        raise InputError("--target-speedup and --density are two targets", hint="give one of them")
    times = times_of(options)
    if times is None:
        raise InputError(
            f"--target-speedup {options.target_speedup:g}: on which GPU?",
            hint="--gpu a100, or a --speed-table of your own",
        )
    return SpeedTarget(options.target_speedup, times, options.tokens or DEFAULT_TOKENS)


def times_of(options: TimesOptions) -> SpeedTable | None:
    """The times of a GPU, from a file if one is given; None if neither is. InputError with the nearest GPU."""
    if options.speed_table is None:
        return SpeedTable.load(options.gpu) if options.gpu else None
    source, rows = read_rows(options.speed_table)
    gpus = list(dict.fromkeys(row.gpu for row in rows))
    if options.gpu is None and len(gpus) > 1:
        raise InputError(f"{options.speed_table} has times of {', '.join(gpus)}", hint="name one with --gpu")
    gpu = pick(options.gpu, gpus, f"GPU in {options.speed_table}:") if options.gpu else gpus[0]
    return SpeedTable(gpu, source, tuple(row for row in rows if row.gpu == gpu))


def expected_of(linears: Sequence[LinearPlan], options: TimesOptions) -> Expectation | None:
    """What the times promise for planned linears; None if no GPU is named."""
    table = times_of(options)
    if table is None:
        if options.tokens is not None:
            raise InputError("--tokens belongs to --gpu", hint="name a GPU")
        return None
    tokens = options.tokens or DEFAULT_TOKENS
    try:
        found = expected_speedup(linears, table, tokens)
    except NotMeasuredError as error:
        return Expectation(table, tokens, None, None, error)
    slower = found.speedup < 1
    return Expectation(table, tokens, found, faster_than_dense(linears, found, table) if slower else None, None)
