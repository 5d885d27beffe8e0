"""What follows from rows: the time of all linears of a model, and how many times faster than each baseline that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..allocate.rows import SERVED
from ..core.patterns import ALL
from .case import DENSE, SQUARE, Row
from .results import SERVE, AnyRow
from .serving.rows import ServeRow
from .ways import AUTO, FLOATS, STOCK, TORCH

BASELINES = {
    "stock": "vLLM's own dense linear of the same precision",
    "dense": "the fastest dense way of the same precision, ours included",
    "torch": "torch's own dense product of the same precision",
    "bf16": "torch's linear in bfloat16",
}
"""What speed-ups are over, and what that is."""
SERVED_BASELINES = {
    "stock": "stock vLLM with a dense checkpoint of the same precision",
    "bf16": "vLLM with a bfloat16 checkpoint",
}
"""The same of servers, whose first own checkpoint may also be the baseline."""
BEST = "best"
"""The fastest sparse way of each linear."""
RATE, OUTPUT = "requests per second", "tokens of an output, with its prompt"
"""The loads whose times are not those of a token."""
SHAPES = dict[str, tuple[int, int]]
"""N and K of each linear."""


@dataclass(frozen=True)
class Table:
    """All linears of a layer of a model, in one precision: microseconds by number of tokens. Of a server: microseconds
    a token, by what `axis` says; without shapes.

    chosen: auto, as a served model runs, or best. baselines: by name and tokens. patterns: by 2:L and tokens. Whatever
    was not measured for every linear is absent.
    """

    level: str
    model: str
    precision: str
    chosen: str
    shapes: SHAPES
    baselines: Mapping[str, Mapping[float, float]]
    patterns: Mapping[str, Mapping[float, float]]
    axis: str = "tokens"

    @cached_property
    def tokens(self) -> list[float]:
        """The numbers of tokens of which anything is known, ascending."""
        return sorted({count for times in (*self.baselines.values(), *self.patterns.values()) for count in times})

    @property
    def baseline(self) -> str:
        """What speed-ups are over unless asked otherwise: stock where it was measured, else the fastest dense way."""
        return next((name for name in BASELINES if self.baselines.get(name)), DENSE)

    def over(self, baseline: str = "") -> str:
        """What a baseline is, by default `baseline`, in words."""
        name = baseline or self.baseline
        return (SERVED_BASELINES if self.level == SERVE else BASELINES).get(name, name)

    @property
    def unit(self) -> str:
        """Of the times: microseconds, where a server decodes or reads prompts those of a token."""
        return "µs per token" if self.level == SERVE and not self.axis.startswith((RATE, OUTPUT)) else "µs"

    def speedup(self, pattern: str, tokens: float, baseline: str = "") -> float | None:
        """Times as fast as a baseline, by default `baseline`; None if either was not measured."""
        before = self.baselines.get(baseline or self.baseline, {}).get(tokens)
        after = self.patterns.get(pattern, {}).get(tokens)
        return before / after if before and after else None

    def of_ideal(self, pattern: str, tokens: float) -> float | None:
        """The speed-up over the fastest dense way, as a share of L / (L - 2); None of other patterns."""
        found, most = self.speedup(pattern, tokens, DENSE), ideal(pattern)
        return found / most if found and most else None

    def efficiency(self, pattern: str, tokens: float) -> float | None:
        """SlideSparse's measure: (S_2:L / S_2:4) / (0.5 / density), S being speed-ups over the same baseline: how much
        of what 2:4 gains is left, over what the share of weights that is left allows."""
        own, half = self.patterns.get(pattern, {}).get(tokens), self.patterns.get("2:4", {}).get(tokens)
        most = ideal(pattern)
        return half / own / (most / 2.0) if own and half and most else None

    def operations_per_second(self, microseconds: float, tokens: float) -> float:
        """2 M N K of the dense weights, over the time."""
        return sum(2 * tokens * rows * columns for rows, columns in self.shapes.values()) / microseconds * 1e6


def ideal(pattern: str) -> float | None:
    """L / (L - 2), 1 for 2:inf; None of what is no 2:L pattern."""
    known = {str(one): one.ideal_speedup for one in ALL}
    return known.get(pattern)


def pattern_order(patterns: Iterable[str]) -> list[str]:
    """Patterns by L."""
    known = [str(pattern) for pattern in ALL]
    return sorted(patterns, key=lambda one: (known.index(one) if one in known else len(known), one))


def tables(rows: Iterable[AnyRow]) -> list[Table]:
    """A table for each model and precision: of auto where that was measured, and of the best. Of servers: for each kind
    of load and setting."""
    measured = [row for row in rows if row.measured]
    served = [row for row in measured if isinstance(row, ServeRow)]
    return [*_tables([row for row in measured if isinstance(row, Row)]), *_served(served)]


def _tables(rows: list[Row]) -> Iterator[Table]:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case.level, row.case.model, row.case.precision), []).append(row)
    for (level, model, precision), some in groups.items():
        every = [row for row in rows if row.case.model == model and row.case.level == level]
        shapes = {row.case.linear: (row.case.rows, row.case.columns) for row in every}
        baselines = {name: _sums(_baseline(name, precision, every), shapes) for name in BASELINES}
        present = pattern_order({row.case.pattern for row in some} - {DENSE})
        for chosen in (AUTO, BEST):
            own = [row for row in some if (row.case.way == AUTO) == (chosen == AUTO)]
            times = {name: _sums((row for row in own if row.case.pattern == name), shapes) for name in present}
            found = {name: by_tokens for name, by_tokens in times.items() if by_tokens}
            if found:
                kept = {name: by_tokens for name, by_tokens in baselines.items() if by_tokens}
                yield Table(level, model, precision, chosen, shapes, kept, found)


def _served(rows: list[ServeRow]) -> Iterator[Table]:
    """Speed-ups over stock vLLM with a dense checkpoint of the same precision, and over bfloat16."""
    loads: dict[tuple[str, str], dict[ServeRow, float]] = {}
    for row in rows:
        for load, taken in _microseconds(row).items():
            loads.setdefault((row.case.model, load), {})[row] = taken
    for (model, load), taken_by in loads.items():
        dense = {row: taken for row, taken in taken_by.items() if row.case.pattern == DENSE}
        for precision in dict.fromkeys(row.case.precision for row in taken_by):
            own = {
                row: taken for row, taken in taken_by.items() if row.case.precision == precision and row not in dense
            }
            same = {row: taken for row, taken in dense.items() if row.case.precision == precision}
            bf16 = {row: taken for row, taken in dense.items() if row.case.precision == "bf16"}
            baselines = {name: _by_size(of) for name, of in (("stock", same), ("bf16", bf16)) if of}
            for setting in dict.fromkeys(row.case.setting for row in own):
                with_it = {row: taken for row, taken in own.items() if row.case.setting == setting}
                patterns = {
                    name: _by_size({row: taken for row, taken in with_it.items() if row.case.pattern == name})
                    for name in pattern_order({row.case.pattern for row in with_it})
                }
                yield Table(SERVE, model, precision, setting, {}, baselines, patterns, load)


def _microseconds(row: ServeRow) -> dict[str, float]:
    """What a row has to say, in microseconds, by what the sizes of such a table are."""
    case = row.case
    if case.what == "rate":
        found = {"first token, 90 %": row.ttft_90_ms, "a token, median": row.tpot_50_ms}
        return {f"{RATE}: time to {name}": value * 1e3 for name, value in found.items() if value}
    if case.what == "prefill":
        return {f"tokens of prompts of {case.shape.partition('x')[2]}": row.seconds[1] * 1e6}
    if case.what == "latency":
        return {OUTPUT: row.seconds[1] * case.size * 1e6}
    return {{"decode": "sequences decoded at once", "mixed": "mixed requests"}[case.what]: row.seconds[1] * 1e6}


def _by_size(rows: Mapping[ServeRow, float]) -> dict[float, float]:
    return {row.case.size: rows[row] for row in sorted(rows, key=lambda row: row.case.size)}


def _baseline(name: str, precision: str, rows: list[Row]) -> Iterator[Row]:
    """The dense rows that make up a baseline."""
    wanted = "bf16" if name == "bf16" else precision
    ways = {"stock": STOCK, "torch": TORCH[precision], "bf16": TORCH["bf16"]}
    if name == "stock" and precision in FLOATS:
        ways[name] = TORCH[precision]  # vLLM's linear in 16 bits is torch's
    for row in rows:
        if row.case.pattern == DENSE and row.case.precision == wanted and (name == DENSE or row.case.way == ways[name]):
            yield row


def _sums(rows: Iterable[Row], shapes: SHAPES) -> dict[float, float]:
    """The fastest row of each linear, added up, by tokens; where every linear has one."""
    least: dict[int, dict[str, float]] = {}
    for row in rows:
        assert row.times
        of = least.setdefault(row.case.tokens, {})
        of[row.case.linear] = min(row.times.device, of.get(row.case.linear, row.times.device))
    return {tokens: sum(of.values()) for tokens, of in sorted(least.items()) if of.keys() == shapes.keys()}


def speed_table(found: Iterable[Table], gpu: str, about: Iterable[str]) -> str:
    """The CSV that `plan` and `allocate` take with --speed-table: speed-ups of what the rule chose where that was
    measured, else of the fastest way, over each table's baseline.

    gpu: the name to give it there. about: lines on where the times come from.
    """
    preferred: dict[tuple[str, str], Table] = {}
    for table in found:
        layers = SQUARE not in table.shapes and table.precision not in FLOATS and table.baselines.get(table.baseline)
        if layers and (table.model, table.precision) not in preferred:  # auto comes first
            preferred[table.model, table.precision] = table
    some = list(preferred.values())
    patterns = pattern_order({name for table in some for name in table.patterns})
    lines = [f"# {line}" for line in about]
    if some and all(table.baseline == STOCK for table in some):
        lines.append(f"# {SERVED} ({BASELINES[STOCK]})")
    lines.append(",".join(["gpu", "scheme", "model", "linears", "tokens", "dense", *patterns]))
    for table in some:
        linears = "+".join(f"{rows}x{columns}" for rows, columns in table.shapes.values())
        for tokens, dense in table.baselines[table.baseline].items():
            gains = [table.speedup(name, tokens) for name in patterns]
            cells = ["" if gain is None else f"{gain:.3f}" for gain in gains]
            lines.append(",".join([gpu, table.precision, table.model, linears, str(tokens), f"{dense:.1f}", *cells]))
    return "\n".join(lines) + "\n"
