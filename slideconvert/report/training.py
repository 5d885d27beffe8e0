"""The training section of the HTML report: held-out losses over epochs, as a plot and in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import printable
from .record import Training
from .summary import percent
from .svg import LEFT, MARKERS, PLOT, RIGHT, WIDTH, Axis, svg


def training_plot(parts: Sequence[Training]) -> str:
    """The loss on held-out sequences over epochs, relative to the loss before training; markers: kept epochs."""
    longest = max(len(part.losses) for part in parts)
    shares = [[_share(loss, part.losses[0]) for loss in part.losses] for part in parts]
    finite = [share for line in shares for share in line if math.isfinite(share)]
    top = 18.0
    axis = Axis.over(100 * min(finite, default=0.0), 100 * max(finite, default=1.0), top)
    step = (WIDTH - LEFT - RIGHT - 20) / max(1, longest - 1)

    def point(epoch: int, share: float) -> str:
        return f"{LEFT + 10 + epoch * step:.1f} {axis.y(100 * share):.1f}"

    drawn = []
    for number, (part, line) in enumerate(zip(parts, shares, strict=True)):
        points = [point(epoch, share) for epoch, share in enumerate(line) if math.isfinite(share)]
        if not points:
            continue
        x, y = point(part.best, line[part.best]).split()
        tooltip = f"{printable(part.part)}: {percent(line[part.best])} of the loss before, after epoch {part.best}"
        drawn.append(
            f'<g class="series s{number % len(MARKERS)}"><path class="line" d="M{"L".join(points)}"/>'
            f'<circle class="mark" cx="{x}" cy="{y}" r="4"><title>{tooltip}</title></circle></g>'
        )
    ticks = "".join(
        f'<text class="mid" x="{point(epoch, 0).split()[0]}" y="{top + PLOT + 20:.0f}">{epoch}</text>'
        for epoch in range(0, longest, max(1, longest // 12))
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    name = f'<text class="mid name" x="{middle:.0f}" y="{top + PLOT + 42:.0f}">epoch</text>'
    about = f"Line plot. {len(parts)} trainings; the table below lists their first and best losses."
    body = axis.draw("loss relative to before", "%") + ticks + name + "".join(drawn)
    return svg("training", "Loss on held-out sequences over epochs", about, top + PLOT + 48, body)


def _share(loss: float | None, before: float | None) -> float:
    """A loss relative to the loss before training; NaN if one of them is not finite."""
    if loss is None or before is None:
        return math.nan
    return loss / before if before else 1.0


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.6g}"


def _dot(number: int) -> str:
    """The marker of a line in the plot, for the table."""
    mark = f'<g class="series s{number % len(MARKERS)}"><circle class="mark" cx="5" cy="5" r="4"/></g>'
    return f'<svg class="dot" aria-hidden="true" viewBox="0 0 10 10">{mark}</svg>'


def training_table(parts: Sequence[Training]) -> str:
    """For each part, the losses before training and of the kept epoch, and how often it restarted, as an HTML table."""
    rows = "".join(
        f'<tr><th scope="row">{_dot(number)}{printable(part.part)}</th>'
        f'<td class="number">{_number(part.losses[0])}</td>'
        f'<td class="number">{_number(part.losses[part.best])}</td><td class="number">{part.best} of '
        f'{len(part.losses) - 1}</td><td class="number">{part.restarts}</td></tr>\n'
        for number, part in enumerate(parts)
    )
    heads = '<th scope="col">Part</th>' + "".join(
        f'<th scope="col" class="number">{name}</th>' for name in ("Loss before", "Loss kept", "Epoch kept", "Restarts")
    )
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'
