"""What was chosen for a target, and what a plan may expect: for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..allocate.choose import SpeedTarget
from ..allocate.speed import counted
from ..allocate.written import summary, times_lines
from ..core.patterns import ALL
from ..errors import UNKNOWN
from .columns import Column, table

if TYPE_CHECKING:
    from ..allocate.allocation import Allocation
    from ..allocate.choose import Chosen, Uniform
    from ..allocate.expected import Expected
    from ..allocate.faster import Faster
    from ..allocate.speed import SpeedTable
    from ..api.target import Expectation
    from .columns import Table

KINDS = Column("linears", short=lambda kinds: kinds.replace("_proj", ""))


def chosen_table(chosen: Chosen, *, every_error: bool) -> Table:
    """A row a layer with the patterns of its groups and their errors, or a row a group with all errors measured."""
    patterns = chosen.allocation.patterns
    if every_error:
        tried = [pattern for pattern in ALL if any(pattern in errors for errors in chosen.errors.values())]
        numbers = [Column(str(pattern), spare) for spare, pattern in enumerate(tried)]
        made = table("Errors by pattern", ["layer", KINDS, "chosen"], numbers)
        for group, errors in chosen.errors.items():
            cells = [f"{errors[pattern]:.1e}" if pattern in errors else "–" for pattern in tried]
            made.add_row(str(group.layer), "/".join(group.kinds), str(patterns[group]), *cells)
        return made
    rows: dict[int, dict[str, str]] = {}
    for group, pattern in patterns.items():
        cell = f"{pattern!s:<6}{chosen.errors[group][pattern]:.1e}"
        rows.setdefault(group.layer, {})["/".join(group.kinds)] = cell
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    made = table("Patterns and their errors", ["layer", *(replace(KINDS, name=kind) for kind in kinds)], [])
    for layer, row in rows.items():
        made.add_row(str(layer), *(row.get(kind, "–") for kind in kinds))
    return made


def uniform_table(chosen: Chosen) -> Table:
    """The choice, and each pattern for all instead."""
    made = table("Against one pattern for all", ["pattern"], ["speed-up", "density", "error"])
    rows: list[tuple[str, Allocation | Uniform]] = [("as chosen", chosen.allocation)]
    rows += [(str(one.pattern), one) for one in chosen.uniform]
    for name, row in rows:
        speedup = UNKNOWN if row.speedup is None else f"{row.speedup:.2f}×"
        made.add_row(name, speedup, f"{row.density:.1%}", f"{row.error:.3g}")
    return made


def chosen_summary(chosen: Chosen) -> str:
    """The choice as text."""
    return "\n".join(summary(chosen))


def chosen_json(chosen: Chosen) -> dict[str, Any]:
    """What `allocate --json` prints, and `convert --json` as its "allocation"."""
    target, found = chosen.target, chosen.allocation
    asked: dict[str, Any] = {}
    if isinstance(target, SpeedTarget):
        gpu, source = target.table.gpu, list(target.table.source)
        asked |= {"speedup": target.speedup, "gpu": gpu, "tokens": target.tokens, "source": source}
    else:
        asked |= {"density": target.density}
    return {
        "target": asked,
        "speedup": found.speedup,
        "density": found.density,
        "error": found.error,
        "error_floor": found.floor,
        "measured": list(chosen.measured),
        "left_out": list(chosen.left_out),
        "uniform": [{**vars(one), "pattern": str(one.pattern)} for one in chosen.uniform],
        "groups": [
            {
                "layer": group.layer,
                "linears": [linear.name for linear in group.linears],
                "shape": list(group.shape),
                "pattern": str(pattern),
                "errors": {str(tried): error for tried, error in chosen.errors[group].items()},
            }
            for group, pattern in found.patterns.items()
        ],
    }


def expected_summary(expectation: Expectation) -> str:
    """How fast planned linears should become, by whose times, and what would be faster than a plan that is slower."""
    table, expected = expectation.table, expectation.found
    if expected is None:
        missing = expectation.missing
        assert missing is not None
        return f"speed    not known: {missing.what}\n         ({missing.hint})"
    left_out = f", {len(expected.left_out)} linears without times left out" if expected.left_out else ""
    at_most = "at most " if expected.beyond_bound and not table.served else ""
    lines = [
        f"speed    {at_most}{expected.speedup:.2f}× dense 8-bit linears expected on {table.gpu} at "
        f"{counted(expected.tokens)}{left_out}",
        *_beyond_the_bound(expected, table),
        *_ways_out(expectation.faster, expected),
        *times_lines(expected.measured, table),
    ]
    return "\n".join(lines)


def _beyond_the_bound(expected: Expected, table: SpeedTable) -> list[str]:
    """What it means if the table's speed-up is more than sparse tensor cores can give."""
    if not expected.beyond_bound:
        return []
    bound = f"the {expected.bound:.2f}× that sparse tensor cores give at most"
    if table.served:
        return [f"         More than {bound}: the server's dense linears are slow for {counted(expected.tokens)}."]
    return [
        f"         The table has {expected.table_speedup:.2f}×, more than {bound}: its dense product runs below the "
        "speed of the GPU, so expect less."
    ]


def _ways_out(faster: Faster | None, expected: Expected) -> list[str]:
    """The warning about a plan that is slower than dense."""
    if faster is None:
        return []
    at = f"at {counted(expected.tokens)}"
    lines = [f"WARNING  slower than dense: this plan gains nothing on {expected.gpu} {at}."]
    if faster.patterns:
        lines.append(f"         Faster there: {_gains(faster.patterns)}.")
    if faster.tokens:
        best = max(faster.tokens, key=lambda tokens: faster.tokens[tokens])
        numbers = ", ".join(map(str, faster.tokens))
        lines.append(f"         This plan is faster at {numbers} tokens: {faster.tokens[best]:.2f}× at {best}.")
    if faster.gpus:
        lines.append(f"         This plan on other GPUs {at}: {_gains(faster.gpus)}.")
    if len(lines) == 1:
        lines.append(
            "         No pattern, number of tokens or GPU in the tables is faster: --pattern 2_inf stays dense."
        )
    return lines


def _gains(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {gain:.2f}×" for name, gain in found.items())


def expected_json(expectation: Expectation) -> dict[str, Any]:
    """What `plan --json` prints of it; times in the unit of the table, null where nothing was measured."""
    table, expected, missing = expectation.table, expectation.found, expectation.missing
    asked = {"gpu": table.gpu, "tokens": expectation.tokens, "source": list(table.source)}
    if expected is None:
        return {**asked, "speedup": None, "missing": missing.to_json() if missing else None}
    figures = {name: getattr(expected, name) for name in ("speedup", "table_speedup", "bound", "beyond_bound")}
    faster = asdict(expectation.faster) if expectation.faster else None
    return {**asked, **vars(expected), **figures, "missing": None, "faster": faster}
