"""Figures of results as SVG: speed-ups by tokens, and rooflines with the ceilings that were measured."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from ..report.page import escaped
from ..report.svg import BOTTOM, LEFT, MARKERS, PLOT, RIGHT, TOP, UPRIGHT, WIDTH, Axis, svg
from .case import DENSE, KERNEL
from .tables import Table

DECADE = (1, 2, 5)
WEIGHT_BYTES = {"int8": 1.0, "fp8": 1.0, "bf16": 2.0, "fp16": 2.0}
"""Bytes of a dense weight, and of an activation of a product alone."""
OUT_BYTES = 2
"""bfloat16."""
LAST_LABEL = WIDTH - 22
"""The middle of a label below the horizontal axis, at most: its digits stay in the figure."""


@dataclass(frozen=True)
class Figure:
    """name: of a file, without its ending. title, about: plain text. series: the names of what it shows, in the order
    of their markers; the drawing has no legend."""

    name: str
    title: str
    about: str
    markup: str
    series: tuple[str, ...]


def figures(found: Iterable[Table], copy_bytes_per_second: float | None) -> list[list[Figure]]:
    """Of each table speed-up curves, if it has several sizes, and a roofline if it has shapes."""
    made = []
    for table in found:
        words = (table.model, table.precision, table.chosen, "" if table.shapes else table.axis)
        name = re.sub("[^a-z0-9.]+", "-", "-".join(word for word in words if word).lower()).strip("-")
        own = [speedup_figure(table, f"{name}-speedup")] if len(table.tokens) > 1 else []
        if table.shapes:
            own.append(roofline_figure(table, f"{name}-roofline", copy_bytes_per_second))
        made.append(own)
    return made


def speedup_figure(table: Table, name: str) -> Figure:
    """A line a pattern over numbers of tokens; 1 is the baseline."""
    title = f"{table.model} {table.precision}: speed-up over {table.baseline}"
    points = {
        pattern: [
            (place, gain) for place, tokens in enumerate(table.tokens) if (gain := table.speedup(pattern, tokens))
        ]
        for pattern in table.patterns
    }
    gains = [gain for line in points.values() for _, gain in line]
    axis = Axis.over(0.0, max([1.0, *gains]), TOP)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(table.tokens))
    labels = "".join(
        f'<text class="mid" x="{LEFT + (place + 0.5) * width:.1f}" y="{TOP + PLOT + 20:.1f}">{tokens:,g}</text>'
        for place, tokens in enumerate(table.tokens)
    )
    one = f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{axis.y(1):.1f}" y2="{axis.y(1):.1f}"/>'
    lines = {
        pattern: [(LEFT + (place + 0.5) * width, axis.y(gain), f"{gain:.2f}") for place, gain in line]
        for pattern, line in points.items()
    }
    body = axis.draw("speed-up", "×") + one + labels + _name(escape(table.axis)) + _series(lines)
    span = "" if not gains else f"{min(gains):.2f}" + (f" to {max(gains):.2f}" if len(gains) > 1 else "")
    about = f"{span} times as fast" if span else "Nothing to compare with was measured"
    return Figure(name, title, about, svg(name, title, about, TOP + PLOT + BOTTOM, body), tuple(lines))


def roofline_figure(table: Table, name: str, copy_bytes_per_second: float | None) -> Figure:
    """Operations of the dense weights per second over operations per byte, both logarithmic."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    # Dense last: a pattern looks as it does among the speed-ups.
    times: Mapping[str, Mapping[float, float]] = {**table.patterns, DENSE: table.baselines.get(DENSE, {})}
    for pattern, by_tokens in times.items():
        for tokens, taken in by_tokens.items():
            speed = table.operations_per_second(taken, tokens)
            found = (_intensity(table, pattern, tokens), speed / 1e12, f"{tokens:,g} tokens: {speed / 1e12:,.1f} TOP/s")
            points.setdefault(pattern, []).append(found)
    every = [point for line in points.values() for point in line]
    ceilings = f"fastest dense product {max((p[1] for p in points.get(DENSE, [])), default=0):,.0f} TOP/s"
    if copy_bytes_per_second:
        ceilings += f", copy {copy_bytes_per_second / 1e12:.2f} TB/s"
    x, y = (
        Log.over([point[0] for point in every], LEFT, WIDTH - RIGHT),
        Log.over([p[1] for p in every], TOP + PLOT, TOP),
    )
    lines = {pattern: [(x.at(a), y.at(b), text) for a, b, text in line] for pattern, line in points.items()}
    body = _grid(x, y) + _roof(x, y, points.get(DENSE, []), copy_bytes_per_second) + _series(lines)
    body += _name("operations of the dense weights per byte read and written")
    body += f'<text class="mid name" transform="translate({UPRIGHT} {TOP + PLOT / 2:.0f}) rotate(-90)">TOP/s</text>'
    title = f"{table.model} {table.precision}: roofline"
    return Figure(
        name, title, f"Ceilings: {ceilings}", svg(name, title, ceilings, TOP + PLOT + BOTTOM, body), tuple(lines)
    )


@dataclass(frozen=True)
class Log:
    """A logarithmic axis from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: list[float], start: float, end: float) -> Log:
        """With round ends around the values."""
        low, high = min(values, default=1.0), max(values, default=10.0)
        below = [tick for tick in _ticks(low / 10, low) if tick <= low]
        above = [tick for tick in _ticks(high, high * 10) if tick >= high]
        return cls(below[-1], above[0] if above[0] > below[-1] else above[1], start, end)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [tick for tick in _ticks(self.low, self.high) if self.low <= tick <= self.high]


def _ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [float(f"{unit}e{decade}") for decade in range(first, last + 1) for unit in DECADE]


def _grid(x: Log, y: Log) -> str:
    across = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>'
        f'<text class="end" x="{LEFT - 8}" y="{y.at(tick) + 4:.1f}">{tick:g}</text>'
        for tick in y.ticks
    )
    return across + "".join(
        f'<text class="mid" x="{min(x.at(tick), LAST_LABEL):.1f}" y="{TOP + PLOT + 20:.1f}">{tick:g}</text>'
        for tick in x.ticks
    )


def _roof(x: Log, y: Log, dense: list[tuple[float, float, str]], copy: float | None) -> str:
    """The measured ceilings: the fastest dense product, and what a copy's bandwidth allows at each intensity."""
    if not dense or not copy:
        return ""
    most = max(speed for _, speed, _ in dense)
    corner = min(max(most / (copy / 1e12), x.low), x.high)
    start = max(x.low, y.low / (copy / 1e12))
    slope = f"M{x.at(start):.1f} {y.at(start * copy / 1e12):.1f}L" if start < corner else "M"
    return f'<path class="line roof" d="{slope}{x.at(corner):.1f} {y.at(most):.1f}H{x.at(x.high):.1f}"/>'


def _intensity(table: Table, pattern: str, tokens: float) -> float:
    """Operations of the dense weights per byte of weights, activations and outputs, each counted once."""
    size = WEIGHT_BYTES[table.precision]
    # Of four lanes two values are stored, with two bits of position each.
    share = 1.0 if pattern == DENSE else _expansion(pattern) * (0.5 + 2 * 2 / (8 * 4) / size)
    moved = done = 0.0
    for rows, columns in table.shapes.values():
        read = size if table.level == KERNEL else OUT_BYTES
        moved += rows * columns * size * share + tokens * (columns * read + rows * OUT_BYTES)
        done += 2 * tokens * rows * columns
    return done / moved


def _expansion(pattern: str) -> float:
    """K' / K."""
    return 2.0 if pattern == "2:inf" else 2.0 - 4.0 / int(pattern[2:])


def _name(text: str) -> str:
    return f'<text class="mid name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{TOP + PLOT + 42:.1f}">{text}</text>'


def _series(lines: Mapping[str, list[tuple[float, float, str]]]) -> str:
    """Lines and markers. lines: x, y and the text of a tooltip."""
    parts = []
    for place, (label, points) in enumerate(lines.items()):
        style = place % len(MARKERS)
        path = "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y, _) in enumerate(points))
        marks = "".join(
            f'<path class="mark point" transform="translate({x:.1f} {y:.1f})" d="{MARKERS[style]}">'
            f"<title>{escaped(label)}, {escape(text)}</title></path>"
            for x, y, text in points
        )
        parts.append(f'<g class="series s{style}"><path class="line" d="{path}"/>{marks}</g>')
    return "".join(parts)
