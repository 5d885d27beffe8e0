"""What was chosen for a target, and what a plan may expect: for people and for machines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..allocate.choose import SpeedTarget
from ..allocate.written import summary, times_lines
from ..core.patterns import ALL
from .columns import Column, table

if TYPE_CHECKING:
    from ..allocate.allocation import Allocation
    from ..allocate.choose import Chosen, Uniform
    from ..allocate.expected import Expected
    from ..allocate.speed import SpeedTable
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
        speedup = "–" if row.speedup is None else f"{row.speedup:.2f}×"
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


def expected_summary(expected: Expected, times: SpeedTable) -> str:
    """How fast planned linears should become, and by whose times."""
    left_out = f", {len(expected.left_out)} linears in 16 bits left out" if expected.left_out else ""
    lines = [
        f"speed    {expected.speedup:.2f}× dense 8-bit linears expected on {expected.gpu} at {expected.tokens} tokens"
        f"{left_out}",
        *times_lines(expected.measured, times),
    ]
    return "\n".join(lines)


def expected_json(expected: Expected, times: SpeedTable) -> dict[str, Any]:
    """What `plan --json` prints of it; dense and planned in the unit of the table."""
    return {**vars(expected), "speedup": expected.speedup, "source": list(times.source)}
