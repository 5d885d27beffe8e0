"""What plots are drawn with, as inline SVG. The colors, for light and dark mode, are in the style sheet of the page.

Keys are HTML above a plot: they wrap where the screen is narrow, while a wide plot scrolls in its box.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .page import escaped
from .style import STYLE

WIDTH, LEFT, RIGHT, BOTTOM, PLOT = 1080, 96, 8, 48, 280
MOST_LABELS = 24
TOP = 18.0
"""Room above a plot."""
UPRIGHT = 17
"""x of the baseline of a vertical axis' name, which reads upwards: with the letters of a narrow screen left of it."""

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "M-3.5-3.5h7v7h-7z",  # square
    "M0-4.6L4.4 3.2H-4.4z",  # triangle up
    "M0-5L4.6 0L0 5L-4.6 0z",  # diamond
    "M0 4.6L4.4-3.2H-4.4z",  # triangle down
    "M-1.4-4.8h2.8v3.4h3.4v2.8h-3.4v3.4h-2.8v-3.4h-3.4v-2.8h3.4z",  # plus
    "M0-2L2.6-4.6L4.6-2.6L2 0L4.6 2.6L2.6 4.6L0 2L-2.6 4.6L-4.6 2.6L-2 0L-4.6-2.6L-2.6-4.6z",  # cross
    "M-4.4-4L4.4 4V-4L-4.4 4z",  # bow tie
    "M-4.6 0L-2.3-4h4.6L4.6 0L2.3 4h-4.6z",  # hexagon
)
"""One marker per kind: color alone does not work in black-and-white prints and for color-blind readers."""


def round_ticks(low: float, high: float) -> tuple[float, ...]:
    """About six round, evenly spaced numbers that enclose low to high. They start at zero unless low > high / 2."""
    if low <= high / 2 or low == high:
        low = 0.0
    raw = ((high - low) or 1.0) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, max(last, first + 1) + 1))


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The numbers with as many digits as their distance needs."""
    step = ticks[1] - ticks[0]
    digits = next((digits for digits in range(12) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 12)
    return [f"{tick:.{digits}f}" for tick in ticks]


@dataclass(frozen=True)
class Axis:
    """A vertical axis with round, evenly spaced ticks that enclose the data. top: y of its upper end in pixels."""

    ticks: tuple[float, ...]
    top: float

    @classmethod
    def over(cls, low: float, high: float, top: float) -> Axis:
        """An axis for data from `low` to `high`, with the ticks of `round_ticks`."""
        return cls(round_ticks(low, high), top)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.top + PLOT * (1 - (value - low) / (high - low))

    def draw(self, label: str, unit: str) -> str:
        lines = "".join(
            f'<line class="{"base" if not place else "grid"}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="end" x="{LEFT - 8}" y="{self.y(tick) + 4:.1f}">{text}{unit}</text>'
            for place, (tick, text) in enumerate(zip(self.ticks, tick_texts(self.ticks), strict=True))
        )
        middle = self.top + PLOT / 2
        return f'{lines}<text class="mid name" transform="translate({UPRIGHT} {middle:.0f}) rotate(-90)">{label}</text>'


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


def marker(style: int, x: float, y: float, scale: float = 1.0, tooltip: str | None = None, extra: str = "") -> str:
    """A marker; with a tooltip, a data point. extra: more CSS classes of a data point."""
    place = f'transform="translate({x:.1f} {y:.1f}) scale({scale:.2f})" d="{MARKERS[style]}"'
    if tooltip is None:
        return f'<path class="mark" {place}/>'
    return f'<path class="mark point{extra}" {place}><title>{escape(tooltip)}</title></path>'


def key(style: str, name: str, drawn: str) -> str:
    """An entry of a key: what stands for a series in the plot, around (13, 7) of 26 by 14 pixels, and its name."""
    dot = f'<svg class="dot" aria-hidden="true" viewBox="0 0 26 14">{drawn}</svg>'
    return f'<span class="key {style}">{dot}{escaped(name)}</span>'


def line_key(style: int, name: str) -> str:
    """The entry of a line with markers."""
    return key(f"s{style}", name, f'<path class="line" d="M0 7h26"/>{marker(style, 13, 7)}')


def drawn(keys: str, plot: str) -> str:
    """A plot below its key."""
    return f'<div class="drawn"><div class="keys">{keys}</div><div class="scroll">{plot}</div></div>'


def svg(name: str, title: str, about: str, height: float, body: str, width: int = WIDTH, extra: str = "") -> str:
    """A plot of the page. `body` is markup; `title` and `about` are plain text for screen readers."""
    return (
        f'<svg class="plot{extra}" id="{name}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(about)}</desc>{body}</svg>'
    )


TITLE = 30
"""Pixels for the title above a plot that is a file of its own."""


def standalone(plot: str, size: int = 12, title: str = "", names: Sequence[str] = ()) -> str:
    """A plot of `svg` as a file of its own, light or dark as the screen prefers, on a ground of its own color: the page
    around it may be either. size: of the font, in pixels. title: plain text above the plot. names: of its series, which
    follow the title as a legend."""
    light, dark = (STYLE[STYLE.index(mark) :].partition("}")[0] for mark in (":root{", "dark){:root{"))
    found = re.findall(
        r"^(?:\.plot|\.grid|\.base|\.mid|\.end|\.s\d|\.series|\.mark|\.line|\.roof)[^@\n]*$", STYLE, re.MULTILINE
    )
    rules = "".join(line for line in found if ":has(" not in line and "min-width" not in line).replace(".plot ", "")
    rules = re.sub(r"\.s(\d)\{--s:var\(--s\1\)\}", r".s\1{color:var(--s\1)}", rules)
    rules = rules.replace(".series{color:var(--s)}", "") + ".ground{fill:var(--card)}"
    themes = [_resolved(rules, dict(re.findall(r"(--[a-z0-9-]+):([^;}]+)", colors))) for colors in (light, dark)]
    differing = "".join(dict.fromkeys(rule for rule in themes[1] if rule not in themes[0]))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONTS}" font-size="{size}" '
    opened, _, inner = plot.removeprefix("<svg ").partition(">")
    style = f"{''.join(themes[0])}@media (prefers-color-scheme:dark){{{differing}}}"
    above, legend = _legend(names)
    if title:
        above += TITLE
        words = (
            f'<text x="{LEFT - 13}" y="{TITLE - 8 - above}" font-size="15" font-weight="bold">{escaped(title)}</text>'
        )
        inner = words + inner
    opened = re.sub(
        r'viewBox="0 0 (\d+) (\d+)"',
        lambda sizes: f'viewBox="0 {-above} {sizes[1]} {int(sizes[2]) + above}"',
        opened,
    )
    inner = legend + inner
    ground = f'<rect class="ground" y="{-above}" width="100%" height="100%" rx="8"/>'
    return f"{head}{opened}><style>{style}</style>{ground}{inner}\n"


def _legend(names: Sequence[str]) -> tuple[int, str]:
    """The height of a legend above a plot, and its markup: as many entries in a row as the longest name allows."""
    step = 45 + LETTER * max(map(len, names), default=0)
    columns = max(1, (WIDTH - LEFT) // step)
    height = ROW * math.ceil(len(names) / columns)
    entries = []
    for place, name in enumerate(names):
        x, y = LEFT + 8 + place % columns * step, ROW * (place // columns) + ROW // 2 - height
        style = place % len(MARKERS)
        entries.append(
            f'<g class="series s{style}"><path class="line" d="M{x - 13} {y}h26"/>{marker(style, x, y)}'
            f'<text x="{x + 20}" y="{y + 4}">{escaped(name)}</text></g>'
        )
    return height, "".join(entries)


ROW, LETTER = 24, 8
"""Pixels of a row of a legend, and at most of a letter in it."""


FONTS = "system-ui,Segoe UI,Helvetica,Arial,sans-serif"
"""Of files of their own: an image may use what is installed, nothing else."""


def _resolved(rules: str, colors: dict[str, str]) -> list[str]:
    """The rules of CSS without variables, which other programs than browsers do not know."""
    found = re.sub(r"var\((--[a-z0-9-]+)\)", lambda match: colors.get(match[1], "#000"), rules)
    return re.findall(r"[^{}]+\{[^{}]*\}", found)
