"""Charts of two number axes, small enough for a phone and for README files: points with names, joined or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..errors import printable
from .page import escaped
from .svg import MARKERS, line_key, marker, round_ticks, svg, tick_texts

WIDTH, LEFT, RIGHT, HEIGHT, BELOW = 560, 76, 20, 280, 52
LEGEND, ENTRY = 26, 118
"""Height and width of an entry of the legend inside a chart."""
NOTE = 19
"""Height of a line below a chart."""


@dataclass(frozen=True)
class Scale:
    """An axis: what it shows, and its ticks, which enclose the data."""

    label: str
    ticks: tuple[float, ...]
    unit: str = ""

    @classmethod
    def over(cls, values: Iterable[float], label: str, unit: str = "") -> Scale:
        """An axis for these values; it starts at zero unless they are close together."""
        some = list(values)
        return cls(label, round_ticks(min(some), max(some)), unit)

    def share(self, value: float) -> float:
        """Where on the axis a value is, 0 to 1."""
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    @property
    def texts(self) -> list[tuple[float, str]]:
        """The ticks with their labels."""
        return [(tick, f"{text}{self.unit}") for tick, text in zip(self.ticks, tick_texts(self.ticks), strict=True)]


@dataclass(frozen=True)
class Point:
    """A point of a series. tooltip: what it is, in words. tag: a word beside it, "" for none."""

    x: float
    y: float
    tooltip: str
    tag: str = ""


@dataclass(frozen=True)
class Series:
    """Points with one name and marker, joined by a line unless they are no sequence."""

    name: str
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Chart:
    """Series over two axes. name: its id on a page. title, about: plain text for screen readers. legend: whether the
    names of the series are part of the drawing, for files of their own; pages show `keys_of` charts instead."""

    name: str
    title: str
    about: str
    across: Scale
    up: Scale
    series: Sequence[Series]
    legend: bool = False
    notes: tuple[str, ...] = ()

    @property
    def top(self) -> float:
        return (LEGEND if self.legend else 0) + 14.0

    def place(self, point: Point) -> tuple[float, float]:
        """The pixels of a point."""
        x = LEFT + self.across.share(point.x) * (WIDTH - LEFT - RIGHT)
        return x, self.top + (1 - self.up.share(point.y)) * HEIGHT

    def draw(self) -> str:
        """The chart as markup."""
        body = self._axes() + "".join(self._series(place, one) for place, one in enumerate(self.series))
        bottom = self.top + HEIGHT + BELOW
        body += "".join(
            f'<text class="name" x="14" y="{bottom + NOTE * (place + 1) - 6:.0f}">{escape(note)}</text>'
            for place, note in enumerate(self.notes)
        )
        height = bottom + NOTE * len(self.notes) + 8 * bool(self.notes)
        return svg(self.name, self.title, self.about, height, body, WIDTH, " small")

    def _axes(self) -> str:
        parts = []
        for number, (tick, text) in enumerate(self.up.texts):
            _, y = self.place(Point(self.across.ticks[0], tick, ""))
            kind = "grid" if number else "base"
            parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="end" x="{LEFT - 8}" y="{y + 5:.1f}">{text}</text>')
        for tick, text in self.across.texts:
            x, y = self.place(Point(tick, self.up.ticks[0], ""))
            parts.append(f'<text class="mid" x="{x:.1f}" y="{y + 24:.1f}">{text}</text>')
        bottom, middle = self.top + HEIGHT + BELOW - 8, self.top + HEIGHT / 2
        center = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="mid name" x="{center:.0f}" y="{bottom:.0f}">{escaped(self.across.label)}</text>')
        turned = f'transform="translate(16 {middle:.0f}) rotate(-90)"'
        parts.append(f'<text class="mid name" {turned}>{escaped(self.up.label)}</text>')
        return "".join(parts)

    def _series(self, number: int, one: Series) -> str:
        style = number % len(MARKERS)
        places = [self.place(point) for point in one.points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        drawn = f'<path class="line" d="M{line}"/>' if one.joined and len(places) > 1 else ""
        for point, (x, y) in zip(one.points, places, strict=True):
            drawn += marker(style, x, y, 1.5, printable(point.tooltip))
            if point.tag:
                drawn += self._tag(point.tag, x, y)
        if self.legend:
            x = LEFT + 20 + number * ENTRY
            drawn += f'<path class="line" d="M{x - 13} 18h26"/>{marker(style, x, 18, 1.5)}'
            drawn += f'<text x="{x + 20}" y="22">{escaped(one.name)}</text>'
        return f'<g class="series s{style}">{drawn}</g>'

    @staticmethod
    def _tag(text: str, x: float, y: float) -> str:
        """Beside the point, on the side that has room."""
        right = x > WIDTH - RIGHT - 70
        side = ' class="end"' if right else ""
        return f'<text{side} x="{x + (-9 if right else 9):.1f}" y="{y - 7:.1f}">{escaped(text)}</text>'


def keys_of(charts: Sequence[Chart]) -> str:
    """The key of charts with the same series, as markup; series without points in any of them are left out."""
    found: dict[int, str] = {}
    for chart in charts:
        found |= {place: one.name for place, one in enumerate(chart.series) if one.points}
    return "".join(line_key(place % len(MARKERS), name) for place, name in sorted(found.items()))


def side_by_side(charts: Sequence[Chart]) -> str:
    """Charts with the same series below one key, next to each other where there is room; "" without charts."""
    if not charts:
        return ""
    drawn = "".join(chart.draw() for chart in charts)
    return f'<div class="drawn"><div class="keys">{keys_of(charts)}</div><div class="charts">{drawn}</div></div>'
