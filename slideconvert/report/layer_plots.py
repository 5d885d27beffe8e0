"""Plots of the HTML report over decoder layers: errors of linears, and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import printable
from .record import LayerReport
from .summary import by_kind, percent, size
from .svg import BOTTOM, MARKERS, PLOT, TOP, Axis, Bands, drawn, key, line_key, marker, svg


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
    """A value of every linear over decoder layers, one line per kind, with its key. Markers of kept linears are hollow
    and not connected. Values that are missing or not finite are omitted.

    together: by decoder layer, the relative error of the hidden states behind it; drawn as one more line.
    """
    kinds, bands = by_kind(layers), _bands(layers)
    shown = [layer for layer in layers if math.isfinite(measure.of(layer))]
    behind = {number: error for number, error in zip(bands.layers, together, strict=False) if math.isfinite(error)}
    values = [100 * value for value in (*(measure.of(layer) for layer in shown), *behind.values())] or [0.0]
    axis = Axis.over(min(values), max(values), TOP)
    scale = min(1.0, max(0.5, bands.width / 18))
    keys, series = [], []
    for place, (kind, members) in enumerate(kinds.items()):
        style = place % len(MARKERS)
        points = {one.layer: measure.of(one) for one in members if not one.kept and math.isfinite(measure.of(one))}
        marks = "".join(
            _point(style, bands.x(layer.layer), axis.y(100 * measure.of(layer)), scale, layer, measure)
            for layer in members
            if math.isfinite(measure.of(layer))
        )
        keys.append(line_key(style, kind))
        series.append(f'<g class="series s{style}">{_line(points, bands, axis)}{marks}</g>')
    if behind:
        keys.append(key("together", TOGETHER, '<path class="line" d="M0 7h26"/>'))
        series.append(f'<g class="series together">{_line(behind, bands, axis)}</g>')
    about = (
        f"Line plot. {len(shown)} linears in {len(bands.layers)} decoder layers; values from "
        f"{min(values):.2f}% to {max(values):.2f}%. The table below lists every value."
    )
    start = f" (axis starts at {axis.ticks[0]:g}%)" if axis.ticks[0] else ""
    body = axis.draw(f"{measure.axis}{start}", "%") + bands.draw(TOP + PLOT) + "".join(series)
    return drawn("".join(keys), svg(measure.id, measure.title, about, TOP + PLOT + BOTTOM, body))


def _line(points: Mapping[int, float], bands: Bands, axis: Axis) -> str:
    """One path through points by layer, interrupted where there is none."""
    parts, joined = [], False
    for layer in bands.layers:
        if layer in points:
            parts.append(f"{'L' if joined else 'M'}{bands.x(layer):.1f} {axis.y(100 * points[layer]):.1f}")
        joined = layer in points
    return f'<path class="line" d="{"".join(parts)}"/>' if parts else ""


def _point(style: int, x: float, y: float, scale: float, layer: LayerReport, measure: Measure) -> str:
    """A data point, which says what it is of."""
    tooltip = f"{printable(layer.name)}: {percent(measure.of(layer))}{', kept' if layer.kept else ''}"
    return marker(style, x, y, scale, tooltip, " kept" if layer.kept else "")


@dataclass(frozen=True)
class LayerBytes:
    """The stored bytes of the linears of each decoder layer."""

    before: dict[int, int]
    after: dict[int, int]

    @classmethod
    def of(cls, layers: Sequence[LayerReport]) -> LayerBytes:
        bands = _bands(layers)
        before, after = dict.fromkeys(bands.layers, 0), dict.fromkeys(bands.layers, 0)
        for layer in layers:
            before[layer.layer] += layer.bytes_before
            after[layer.layer] += layer.bytes_after
        return cls(before, after)

    @property
    def equal(self) -> bool:
        """Whether all layers have the same bytes, so that a plot of them has nothing to show."""
        return len(set(self.before.values())) == len(set(self.after.values())) == 1


def bytes_plot(layers: Sequence[LayerReport]) -> str:
    """The stored bytes of the linears of every decoder layer before and after, as pairs of bars with their key."""
    bands, found = _bands(layers), LayerBytes.of(layers)
    most = max(1, *found.before.values(), *found.after.values())
    unit, scale = next(
        (name, factor) for name, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 1000), ("B", 1)) if most >= factor
    )
    axis = Axis.over(0, most / scale, TOP)
    bar = min(36.0, bands.width * 0.4)
    bars = [
        f'<rect class="{name}" x="{bands.x(layer) + offset:.1f}" y="{axis.y(values[layer] / scale):.1f}" '
        f'width="{bar:.1f}" height="{TOP + PLOT - axis.y(values[layer] / scale):.1f}">'
        f"<title>layer {layer}, {name}: {size(values[layer])}</title></rect>"
        for layer in bands.layers
        for name, values, offset in (("before", found.before, -bar), ("after", found.after, 0.0))
    ]
    keys = "".join(
        key("", name, f'<rect class="{name}" x="6" width="14" height="14"/>') for name in ("before", "after")
    )
    about = (
        f"Bar chart. All decoder linears together: {size(sum(found.before.values()))} before, "
        f"{size(sum(found.after.values()))} after."
    )
    body = axis.draw(f"stored {unit}", "") + bands.draw(TOP + PLOT) + "".join(bars)
    plot = svg("bytes", "Stored bytes per decoder layer, before and after", about, TOP + PLOT + BOTTOM, body)
    return drawn(keys, plot)


def _bands(layers: Sequence[LayerReport]) -> Bands:
    return Bands(tuple(sorted({layer.layer for layer in layers})))
