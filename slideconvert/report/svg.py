"""Plots of the HTML report as inline SVG. The colors, for light and dark mode, are in the style sheet of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..errors import printable
from .record import LayerReport
from .summary import by_kind, percent, size

WIDTH, LEFT, RIGHT, BOTTOM, PLOT = 1080, 76, 8, 48, 280
LEGEND_ROW, LEGEND_STEP, LEGEND_COLUMNS = 24, 122, 7
MOST_LABELS = 24

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "M-3.5-3.5h7v7h-7z",  # square
    "M0-4.6L4.4 3.2H-4.4z",  # triangle up
    "M0-5L4.6 0L0 5L-4.6 0z",  # diamond
    "M0 4.6L4.4-3.2H-4.4z",  # triangle down
    "M-1.4-4.8h2.8v3.4h3.4v2.8h-3.4v3.4h-2.8v-3.4h-3.4v-2.8h3.4z",  # plus
    "M0-2L2.6-4.6L4.6-2.6L2 0L4.6 2.6L2.6 4.6L0 2L-2.6 4.6L-4.6 2.6L-2 0L-4.6-2.6L-2.6-4.6z",  # cross
)
"""One marker per kind: color alone does not work in black-and-white prints and for color-blind readers."""


@dataclass(frozen=True)
class Axis:
    """A vertical axis with round, evenly spaced ticks that enclose the data. top: y of its upper end in pixels."""

    ticks: tuple[float, ...]
    top: float

    @classmethod
    def over(cls, low: float, high: float, top: float) -> Axis:
        """An axis for data from `low` to `high` with about six ticks. It starts at zero unless low > high / 2."""
        if low <= high / 2 or low == high:
            low = 0.0
        raw = ((high - low) or 1.0) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(tuple(number * step for number in range(first, max(last, first + 1) + 1)), top)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.top + PLOT * (1 - (value - low) / (high - low))

    def draw(self, label: str, unit: str) -> str:
        step = self.ticks[1] - self.ticks[0]
        digits = next((digits for digits in range(12) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 12)
        lines = "".join(
            f'<line class="{"base" if not place else "grid"}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="end" x="{LEFT - 8}" y="{self.y(tick) + 4:.1f}">{tick:.{digits}f}{unit}</text>'
            for place, tick in enumerate(self.ticks)
        )
        middle = self.top + PLOT / 2
        return f'{lines}<text class="mid name" transform="translate(13 {middle:.0f}) rotate(-90)">{label}</text>'


@dataclass(frozen=True)
class Bands:
    """The horizontal axis: one band of equal width per decoder layer."""

    layers: tuple[int, ...]

    @property
    def width(self) -> float:
        return (WIDTH - LEFT - RIGHT) / len(self.layers)

    def x(self, layer: int) -> float:
        return LEFT + (self.layers.index(layer) + 0.5) * self.width

    def draw(self, bottom: float) -> str:
        step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 10**6) if len(self.layers) <= step * MOST_LABELS)
        labels = "".join(
            f'<text class="mid" x="{self.x(layer):.1f}" y="{bottom + 20:.1f}">{layer}</text>'
            for layer in self.layers
            if layer % step == 0
        )
        middle = (LEFT + WIDTH - RIGHT) / 2
        return f'{labels}<text class="mid name" x="{middle:.0f}" y="{bottom + 42:.1f}">decoder layer</text>'


@dataclass(frozen=True)
class Measure:
    """What an error plot shows of each linear: its id on the page, its title, the name of its axis, and the value, None
    for a linear that has none."""

    id: str
    title: str
    axis: str
    value: Callable[[LayerReport], float | None]

    def of(self, layer: LayerReport) -> float:
        """The value, NaN if there is none."""
        found = self.value(layer)
        return math.nan if found is None else found


WEIGHT_CHANGE = Measure("errors", "Relative weight change per decoder layer", "relative change", lambda one: one.error)
OUTPUT_ERROR = Measure(
    "output-errors", "Relative output error per decoder layer", "output error", lambda one: one.output_error
)
TOGETHER = "whole layer"
"""The line of the hidden states behind each layer."""


def error_plot(layers: Sequence[LayerReport], measure: Measure, together: Sequence[float] = ()) -> str:
    """A value of every linear over decoder layers, one line per kind. Markers of kept linears are hollow and not
    connected. Values that are missing or not finite are omitted.

    together: by decoder layer, the relative error of the hidden states behind it; drawn as one more line.
    """
    kinds, bands = by_kind(layers), _bands(layers)
    shown = [layer for layer in layers if math.isfinite(measure.of(layer))]
    behind = {number: error for number, error in zip(bands.layers, together, strict=False) if math.isfinite(error)}
    values = [100 * value for value in (*(measure.of(layer) for layer in shown), *behind.values())] or [0.0]
    top = LEGEND_ROW * math.ceil((len(kinds) + bool(behind)) / LEGEND_COLUMNS) + 18.0
    axis = Axis.over(min(values), max(values), top)
    scale = min(1.0, max(0.5, bands.width / 18))
    series = []
    for place, (kind, members) in enumerate(kinds.items()):
        style = place % len(MARKERS)
        points = {one.layer: measure.of(one) for one in members if not one.kept and math.isfinite(measure.of(one))}
        marks = "".join(
            _marker(style, bands.x(layer.layer), axis.y(100 * measure.of(layer)), scale, _tooltip(layer, measure))
            for layer in members
            if math.isfinite(measure.of(layer))
        )
        series.append(
            _series(f"s{style}", place, kind, _marker(style, *_legend(place), 1.0), points, bands, axis, marks)
        )
    if behind:
        series.append(_series("together", len(kinds), TOGETHER, "", behind, bands, axis, ""))
    about = (
        f"Line plot. {len(shown)} linears in {len(bands.layers)} decoder layers; values from "
        f"{min(values):.2f}% to {max(values):.2f}%. The table below lists every value."
    )
    start = f" (axis starts at {axis.ticks[0]:g}%)" if axis.ticks[0] else ""
    body = axis.draw(f"{measure.axis}{start}", "%") + bands.draw(top + PLOT) + "".join(series)
    return svg(measure.id, measure.title, about, top + PLOT + BOTTOM, body)


def _legend(place: int) -> tuple[float, float]:
    """Where the entry of a series stands in the legend."""
    return LEFT + 8 + place % LEGEND_COLUMNS * LEGEND_STEP, 16 + place // LEGEND_COLUMNS * LEGEND_ROW


def _series(
    style: str, place: int, name: str, mark: str, points: Mapping[int, float], bands: Bands, axis: Axis, marks: str
) -> str:
    """A series with its entry in the legend: a line through `points` by layer, and its markers."""
    x, y = _legend(place)
    return (
        f'<g class="series {style}"><rect class="hit" x="{x - 16}" y="{y - 12}" '
        f'width="{LEGEND_STEP - 6}" height="22"/><path class="line" d="M{x - 13} {y}h26"/>{mark}'
        f'<text x="{x + 20}" y="{y + 4}">{_text(name)}</text>{_line(points, bands, axis)}{marks}</g>'
    )


def bytes_plot(layers: Sequence[LayerReport]) -> str:
    """The stored bytes of the linears of every decoder layer before and after, as pairs of bars."""
    bands = _bands(layers)
    before, after = dict.fromkeys(bands.layers, 0), dict.fromkeys(bands.layers, 0)
    for layer in layers:
        before[layer.layer] += layer.bytes_before
        after[layer.layer] += layer.bytes_after
    most = max(1, *before.values(), *after.values())
    unit, scale = next(
        (name, factor) for name, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 1000), ("B", 1)) if most >= factor
    )
    top = LEGEND_ROW + 18.0
    axis = Axis.over(0, most / scale, top)
    bar = min(36.0, bands.width * 0.4)
    bars = [
        f'<rect class="{name}" x="{bands.x(layer) + offset:.1f}" y="{axis.y(values[layer] / scale):.1f}" '
        f'width="{bar:.1f}" height="{top + PLOT - axis.y(values[layer] / scale):.1f}">'
        f"<title>layer {layer}, {name}: {size(values[layer])}</title></rect>"
        for layer in bands.layers
        for name, values, offset in (("before", before, -bar), ("after", after, 0.0))
    ]
    legend = "".join(
        f'<rect class="{name}" x="{x - 6}" y="9" width="14" height="14"/><text x="{x + 16}" y="20">{name}</text>'
        for name, x in (("before", LEFT + 8), ("after", LEFT + 8 + LEGEND_STEP))
    )
    about = (
        f"Bar chart. All decoder linears together: {size(sum(before.values()))} before, "
        f"{size(sum(after.values()))} after."
    )
    body = axis.draw(f"stored {unit}", "") + bands.draw(top + PLOT) + legend + "".join(bars)
    return svg("bytes", "Stored bytes per decoder layer, before and after", about, top + PLOT + BOTTOM, body)


def _bands(layers: Sequence[LayerReport]) -> Bands:
    return Bands(tuple(sorted({layer.layer for layer in layers})))


def _line(points: Mapping[int, float], bands: Bands, axis: Axis) -> str:
    """One path through points by layer, interrupted where there is none."""
    parts, joined = [], False
    for layer in bands.layers:
        if layer in points:
            parts.append(f"{'L' if joined else 'M'}{bands.x(layer):.1f} {axis.y(100 * points[layer]):.1f}")
        joined = layer in points
    return f'<path class="line" d="{"".join(parts)}"/>' if parts else ""


def _tooltip(layer: LayerReport, measure: Measure) -> tuple[str, bool]:
    """What a data point says of its linear, and whether that is kept."""
    return f"{printable(layer.name)}: {percent(measure.of(layer))}{', kept' if layer.kept else ''}", layer.kept


def _marker(style: int, x: float, y: float, scale: float, tooltip: tuple[str, bool] | None = None) -> str:
    """A marker; with a tooltip, a data point."""
    place = f'transform="translate({x:.1f} {y:.1f}) scale({scale:.2f})" d="{MARKERS[style]}"'
    if tooltip is None:
        return f'<path class="mark" {place}/>'
    label, kept = tooltip
    state = " kept" if kept else ""
    return f'<path class="mark point{state}" {place}><title>{escape(label)}</title></path>'


def _text(text: str) -> str:
    return escape(printable(text if len(text) <= 14 else text[:13] + "…"))


def svg(name: str, title: str, about: str, height: float, body: str) -> str:
    """A plot of the page. `body` is markup; `title` and `about` are plain text for screen readers."""
    return (
        f'<svg class="plot" id="{name}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{title}</title>'
        f'<desc id="{name}-desc">{escape(about)}</desc>{body}</svg>'
    )
