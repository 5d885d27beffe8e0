"""A comparison as one HTML page without scripts or external resources: trade-off, figures, and errors by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..errors import UNKNOWN
from ..report.chart import Chart, Point, Scale, Series, side_by_side
from ..report.page import NUMBER, escaped, figure, whole_page
from ..report.summary import percent, size
from .result import Compared, Side
from .texts import counted, kl_text, perplexity_text, same_top_text, speed_text

Value = Callable[[Side], float | None]
MOST_LABELS = 12
"""Labels of the axis of decoder layers."""


def render(found: Compared) -> str:
    """The whole page; equal comparisons give equal bytes."""
    names = [side.entry.name for side in found.sides]
    head = f'<header><h1>{len(names)} checkpoints</h1>\n<p class="soft">{escaped(" · ".join(names))}</p></header>\n'
    body = head + _trade_off(found) + _notes(found) + _table(found) + _by_layer(found) + _linears(found)
    return whole_page(f"Comparison of {', '.join(names)}", body)


def _notes(found: Compared) -> str:
    if not found.notes:
        return ""
    items = "".join(f"<li><bdi>{escaped(note)}</bdi></li>\n" for note in found.notes)
    return f'<section class="notes"><h2>Notes</h2><ul>\n{items}</ul></section>\n'


def _trade_off(found: Compared) -> str:
    """Accuracy over bits, and over speed if a GPU is named; a chart whose points would all be equal in a direction is
    left out."""
    up: tuple[str, Value] = ("KL, nats per token", _kl)
    if not any(_kl(side) for side in found.sides):
        up = ("perplexity", _perplexity)
    bits: tuple[str, Value] = ("bits per weight", lambda side: side.entry.bits)
    speed: tuple[str, Value] = (f"speed-up on {found.gpu}, {found.tokens:,} tokens", lambda side: side.speedup)
    charts = [
        chart
        for name, across in (("speed", speed), ("bits", bits))
        if (chart := _scatter(name, found, across, up)) is not None
    ]
    if not charts:
        return ""
    about = "Lower is better: how far a checkpoint's predictions are from the source's."
    return figure("Trade-off", about, side_by_side(charts))


def _kl(side: Side) -> float | None:
    """Of the baseline 0: it is what the others are compared with."""
    if side.entry.baseline:
        return 0.0
    return side.quality.kl if side.quality else None


def _perplexity(side: Side) -> float | None:
    return side.quality.perplexity if side.quality else None


def _scatter(name: str, found: Compared, across: tuple[str, Value], up: tuple[str, Value]) -> Chart | None:
    series: list[Series] = []
    points: list[Point] = []
    for side in found.sides:
        x, y = across[1](side), up[1](side)
        own: tuple[Point, ...] = ()
        if x is not None and y is not None and math.isfinite(y):
            own = (Point(x, y, f"{side.entry.name}: {x:.2f} {across[0]}, {y:.3g} {up[0]}"),)
        points += own
        series.append(Series(side.entry.name, own, joined=False))
    if len({point.x for point in points}) < 2 or len({point.y for point in points}) < 2:
        return None
    axes = (Scale.over((p.x for p in points), across[0]), Scale.over((p.y for p in points), up[0]))
    about = f"{len(points)} checkpoints; the table below has the numbers"
    return Chart(f"trade-{name}", f"{up[0]} over {across[0]}", about, *axes, series)


def _table(found: Compared) -> str:
    heads = ["Checkpoint", "Files", "Bits per weight", "Pattern", "Scheme", "Perplexity", "KL divergence", "Same top"]
    heads += ["Speed-up"] if found.gpu else []
    cells = "".join(f'<th scope="col"{NUMBER * bool(place)}>{name}</th>' for place, name in enumerate(heads))
    rows = "".join(_row(side, speed=bool(found.gpu)) for side in found.sides)
    measured = list(dict.fromkeys(side.quality.on for side in found.sides if side.quality))
    about = f"Measured on {escaped('; '.join(measured))}." if measured else "Quality was not measured."
    if found.gpu:
        about += (
            f" Speed-up of the linears over dense 8-bit ones on {escaped(found.gpu)}, {found.tokens:,} tokens at once."
        )
    inside = f'<div class="table"><table><thead><tr>{cells}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'
    return figure("Checkpoints", about, inside)


def _row(side: Side, *, speed: bool) -> str:
    one, quality = side.entry, side.quality
    tag = '<span class="tag">baseline</span>' if one.baseline else ""
    texts = [size(one.bytes), f"{one.bits:.2f}", counted(one.patterns), counted(one.schemes)]
    texts += [perplexity_text(quality), kl_text(quality), same_top_text(quality)]
    texts += [speed_text(side.speedup)] if speed else []
    cells = "".join(f'<td class="number">{escaped(text)}</td>' for text in texts)
    return f'<tr><th scope="row"><bdi>{escaped(one.name)}</bdi>{tag}</th>{cells}</tr>\n'


def _by_layer(found: Compared) -> str:
    """The output error of each checkpoint over decoder layers: of linears alone, and of all before together."""
    alone = {side.entry.name: side.entry.mean_errors() for side in found.sides}
    behind = {side.entry.name: dict(enumerate(side.entry.layer_errors)) for side in found.sides}
    charts = [_lines("linears", "error of linears, mean", alone), _lines("hidden", "error after the layer", behind)]
    shown = [chart for chart in charts if chart]
    if not shown:
        return ""
    about = (
        "On held-out calibration text of each conversion, relative to the source: of the outputs of the linears alone, "
        "and of the hidden states after a layer, with all errors before it."
    )
    return figure("Output error by decoder layer", about, side_by_side(shown))


def _lines(name: str, label: str, found: Mapping[str, Mapping[int, float]]) -> Chart | None:
    points = {
        checkpoint: tuple(
            Point(layer, 100 * error, f"{checkpoint}, layer {layer}: {percent(error)}")
            for layer, error in sorted(errors.items())
            if math.isfinite(error)
        )
        for checkpoint, errors in found.items()
    }
    every = [point for own in points.values() for point in own]
    if not every:
        return None
    last = max(point.x for point in every)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if last <= step * MOST_LABELS)
    across = Scale("decoder layer", tuple(float(tick) for tick in range(0, int(last) + step, step)))
    up = Scale.over((0.0, *(point.y for point in every)), label, "%")
    series = [Series(checkpoint, own) for checkpoint, own in points.items()]
    return Chart(f"layers-{name}", f"{label} by decoder layer", f"{len(series)} checkpoints", across, up, series)


def _linears(found: Compared) -> str:
    """Every measured linear, folded away."""
    if not found.linears:
        return ""
    heads = "".join(
        f'<th scope="col" class="number"><bdi>{escaped(side.entry.name)}</bdi></th>' for side in found.sides
    )
    rows = []
    for name in found.linears:
        errors = [side.entry.output_errors.get(name) for side in found.sides]
        cells = "".join(f'<td class="number">{UNKNOWN if error is None else percent(error)}</td>' for error in errors)
        rows.append(f'<tr><th scope="row"><span class="code">{escaped(name)}</span></th>{cells}</tr>\n')
    return (
        f'<details class="box"><summary>Output error of every linear ({len(rows):,})</summary><div class="table">'
        f'<table><thead><tr><th scope="col">Linear</th>{heads}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody>'
        "</table></div></details>\n"
    )
