"""The trade-off at the top of the HTML report: pairs of bars, of the source and of the output, for accuracy, size and
speed. Pairs of equal bars are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.patterns import parse_pattern
from .page import escaped, figure
from .quality import measured_linears
from .record import LayerReport, Report
from .summary import compared, kl, percent, share, size

SAME = 0.005
"""Bars that differ by less than half a percent look equal."""


@dataclass(frozen=True)
class Pair:
    """What two bars show: a title, source and output as numbers and as text, and what the numbers are, as markup."""

    title: str
    before: float
    after: float
    texts: tuple[str, str]
    about: str

    @property
    def equal(self) -> bool:
        return math.isclose(self.before, self.after, rel_tol=SAME)


def bits_per_weight(stored: int, weights: int) -> float:
    """Bits of each weight, scales included, of linears that take `stored` bytes."""
    return 8 * stored / weights


def ideal_time(layers: Sequence[LayerReport]) -> float | None:
    """The time of all linears together over that of dense ones in the same numbers, if sparse tensor cores were twice
    as fast as dense ones; None where a linear has a pattern of groups, for which there is no such bound."""
    time = 0.0
    for layer in layers:
        gain = 1.0 if layer.kept else parse_pattern(layer.pattern).ideal_speedup
        if gain is None:
            return None
        time += layer.weights / gain
    return time / sum(layer.weights for layer in layers)


def trade_off(report: Report) -> str:
    """The section as markup; nothing for a report without linears."""
    if not report.layers:
        return ""
    pairs = [pair for pair in (*_perplexities(report), *_sizes(report), *_times(report)) if not pair.equal]
    shown = "".join(_bars(pair) for pair in pairs)
    return figure("Trade-off", _accuracy(report), f'<div class="pairs">{shown}</div>')


def _accuracy(report: Report) -> str:
    """What the output's predictions are worth, in one line of markup."""
    on_text = [f"{one.name} {escaped(one.value)}" for one in compared(report)[:2]]
    if on_text:
        return f"Accuracy: {'; '.join(on_text)}."
    if report.held_out:
        linears = measured_linears(report)
        mean = sum(layer.output_error or 0.0 for layer in linears) / len(linears) if linears else 0.0
        return (
            f"Accuracy on held-out calibration text: KL divergence {kl(report.held_out.kl)} nats per token"
            f"{f'; output error of a linear {percent(mean)} on average' if linears else ''}."
        )
    return "Accuracy was not measured. Size and ideal time alone do not say what the output is worth."


def _perplexities(report: Report) -> list[Pair]:
    found, held = report.perplexity, report.held_out
    if "source" in found and "output" in found:
        before, after, on = found["source"], found["output"], report.perplexity_protocol
    elif held:
        before, after, on = held.source_perplexity, held.output_perplexity, "held-out calibration text"
    else:
        return []
    if not (math.isfinite(before) and math.isfinite(after)):
        return []
    change = f"{100 * (after / before - 1):+.1f}%" if before else ""
    return [Pair("Perplexity", before, after, (f"{before:.3f}", f"{after:.3f}"), f"{change} on {escaped(on)}")]


def _sizes(report: Report) -> list[Pair]:
    sums = report.totals
    before, after = (
        bits_per_weight(stored, sums.weights) for stored in (sums.linear_bytes_before, sums.linear_bytes_after)
    )
    files = f"files {size(sums.file_bytes_before)} → {size(sums.file_bytes_after)}"
    ratio = share(after / before) if before else ""
    return [
        Pair(
            "Bits per weight",
            before,
            after,
            (f"{before:.2f}", f"{after:.2f}"),
            f"{ratio} of the source's linears; {files}",
        )
    ]


def _times(report: Report) -> list[Pair]:
    found = ideal_time(report.layers)
    if found is None:
        return []
    about = (
        f"relative to dense linears: {1 / found:.2f}&times; as fast on ideal hardware, not measured. "
        "<code>slideconvert plan --gpu</code> shows what a GPU gains"
    )
    return [Pair("Time of the linears, ideal", 1.0, found, ("1.00", f"{found:.2f}"), about)]


def _bars(pair: Pair) -> str:
    most = max(pair.before, pair.after)
    sides = (("source", "was", pair.before, pair.texts[0]), ("output", "is", pair.after, pair.texts[1]))
    rows = "".join(
        f'<div class="pair"><span>{name}</span>'
        f'<span class="track"><i class="{kind}" style="--w:{value / most:.3f}"></i></span><b>{escaped(text)}</b></div>'
        for name, kind, value, text in sides
    )
    return f'<div><h3>{escaped(pair.title)}</h3>{rows}<p class="soft">{pair.about}</p></div>'
