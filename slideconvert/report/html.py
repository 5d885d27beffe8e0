"""A conversion report as one HTML page without scripts or external resources; equal reports give equal bytes.

Every name on the page may come from an untrusted checkpoint, so `_text` escapes all text. As a second line of defence,
the content security policy of the page forbids scripts and requests.
"""

from __future__ import annotations

import json
import math
from html import escape

from .. import __version__
from ..core.patterns import parse_pattern
from ..errors import printable
from .record import LayerReport, Report
from .style import STYLE
from .summary import (
    compared,
    converted,
    errors,
    legal_share,
    notes,
    patterns,
    percent,
    perplexities,
    perplexity_ratio,
    schemes,
    size,
    zero_share,
)
from .svg import bytes_plot, error_plot
from .training import training_plot, training_table

NAMES_SHOWN = 3
"""The number of linears that a note names; it counts the others, and the table shows the note at each linear."""

_NUMBER = ' class="number"'
COLUMNS = (
    ("Linear and notes", ""),
    ("Out &times; in", _NUMBER),
    ("Pattern", ""),
    ("Scheme", ""),
    ("Zeros", _NUMBER),
    ("Error", _NUMBER),
    ("Pruning alone", _NUMBER),
    ("Output error", _NUMBER),
    ("Bytes", _NUMBER),
)


def render_html(report: Report) -> str:
    """The whole page."""
    plots = _plots(report.layers) if report.layers else ""
    above = _head(report) + _verdict(report) + _notes(report) + _tiles(report)
    body = above + plots + _training(report) + _table(report) + _recipe(report) + _files(report)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(report.source)} → {_text(_what(report))}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}<footer>slideconvert {__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))


def _what(report: Report) -> str:
    """'2:8 INT8' or '2:6 + 2:8 FP8 + INT8'."""
    return " ".join((" + ".join(patterns(report)), " + ".join(schemes(report)).upper())).strip() or "nothing converted"


def _head(report: Report) -> str:
    revision = f" · revision <code>{_text(report.revision)}</code>" if report.revision else ""
    return (
        f"<header><h1><bdi>{_text(report.source)}</bdi> <span>→</span> <strong>{_text(_what(report))}</strong></h1>\n"
        f'<p class="soft">{_text(report.model_type)} · {_text(report.layout)} layout{revision}</p></header>\n'
    )


def _verdict(report: Report) -> str:
    """Whether the output was verified. Zero checked tensors prove nothing, so they count as not verified."""
    if report.verified:
        count = f"{report.verified:,} {'tensor' if report.verified == 1 else 'tensors'}"
        return (
            f'<section class="verdict good"><strong>✓ Verified: {count}</strong>'
            "slideconvert read the written files back and checked them.</section>\n"
        )
    return (
        '<section class="verdict bad"><strong>✗ NOT VERIFIED</strong>The written files were not read back. '
        "Run <code>slideconvert verify CKPT</code> before you use them.</section>\n"
    )


def _notes(report: Report) -> str:
    found = notes(report)
    if not found:
        return ""
    items = []
    for note, names in found:
        shown = ", ".join(f"<code>{_text(name)}</code>" for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        items.append(f"<li><bdi>{_text(note)}</bdi>{': ' + shown + more if names else ''}</li>\n")
    return f'<section class="notes"><h2>Notes</h2><ul>\n{"".join(items)}</ul></section>\n'


def _tiles(report: Report) -> str:
    sums, all_errors = report.totals, errors(converted(report))
    files = f"{size(sums.file_bytes_before)} → {size(sums.file_bytes_after)}"
    linears = f"linears {size(sums.linear_bytes_before)} → {size(sums.linear_bytes_after)}"
    before = sums.file_bytes_before
    ratio = f"{percent(sums.file_bytes_after / before, 1)} of the source; " if before else ""
    kept, legal = len(report.layers) - all_errors.count, legal_share(report)
    tiles = [
        _tile("Weight files", files, ratio + linears, " wide"),
        _tile("Zeros in the linears", percent(zero_share(report)), f"{sums.zeros:,} of {sums.weights:,} weights"),
        *(
            []
            if legal is None
            else [_tile("Blocks with two zeros before", percent(legal), "pruning left them unchanged")]
        ),
    ]
    if all_errors.worst:
        name = _text(all_errors.worst.name).replace(".", ".<wbr>")
        of = f"over {all_errors.count:,} linears" + (f"; excludes {kept} kept" if kept else "")
        tiles += [
            _tile("Worst relative error", percent(all_errors.worst.error), f"<code>{name}</code>"),
            _tile("Mean relative error", percent(all_errors.mean), of),
        ]
    found = {name: (count, parse_pattern(name)) for name, count in patterns(report).items()}
    used = {name: (count, pattern.ideal_speedup) for name, (count, pattern) in found.items() if pattern.ideal_speedup}
    grouped = [name for name in found if name not in used]
    if grouped:
        title = "Group pattern" if len(grouped) == 1 else "Group patterns"
        tiles.append(_tile(title, " + ".join(grouped), "group size and share of pruned groups"))
    if used:
        each = [
            f"{gain:.2f}&times;" + (f" ({count:,} linears)" if len(used) > 1 else "") for count, gain in used.values()
        ]
        title = "Pattern" if len(used) == 1 else "Patterns"
        tiles.append(_tile(title, " + ".join(used), f"ideal speed-up, not measured: {' + '.join(each)}"))
    return f'<section class="tiles" aria-label="Key figures">\n{"".join(tiles)}{_perplexity(report)}</section>\n'


def _perplexity(report: Report) -> str:
    values = report.perplexity
    if not values:
        return ""
    told = perplexities(report)
    numbers = [told[key] for key in ("source", "output") if key in told]
    sides = [side for key, side in (("source", "before"), ("output", "after")) if key in values]
    both = len(numbers) == 2 and values["source"] > 0
    change = f"{100 * (values['output'] / values['source'] - 1):+.1f}%. " if both else ""
    title, ratio = f"Perplexity {' → '.join(sides)}", perplexity_ratio(report)
    change += f"Ratio {ratio}. " if ratio else ""
    figures = [_tile(figure.name, figure.value, _text(figure.about)) for figure in compared(report)]
    return _tile(title, " → ".join(numbers), change + _text(report.perplexity_protocol), " full") + "".join(figures)


def _tile(title: str, value: str, detail: str, extra: str = "") -> str:
    """One key figure. `detail` is markup; `title` and `value` are plain text. extra: more CSS classes."""
    return (
        f'<div class="tile{extra}"><h2>{_text(title)}</h2><div class="value">{_text(value)}</div>'
        f'<p class="soft">{detail}</p></div>\n'
    )


def _plots(layers: tuple[LayerReport, ...]) -> str:
    kept = " Hollow marks: kept linears." if any(layer.kept for layer in layers) else ""
    error = (
        "‖W &minus; W&prime;‖ / ‖W‖ of each linear, where W is its source weight: pruning and quantization together."
        + kept
    )
    stored = "Weights and scales of the linears of each layer, as stored."
    return _figure("Relative error per decoder layer", error, error_plot(layers)) + _figure(
        "Bytes per decoder layer", stored, bytes_plot(layers)
    )


def _training(report: Report) -> str:
    if not report.training:
        return ""
    about = (
        "The remaining weights were trained against the dense model. slideconvert keeps the epoch with the lowest loss "
        "on held-out calibration sequences. Loss of a layer: squared error of its output over the energy of what the "
        "dense layer adds to its input. Loss end to end: Kullback-Leibler divergence per token, in nats"
        + (" (preset paper: cross-entropy)." if report.recipe.get("preset") == "paper" else ".")
    )
    return _figure("Training", about, training_plot(report.training) + training_table(report.training))


def _figure(title: str, about: str, plot: str) -> str:
    """A titled box with a plot. All three texts are markup."""
    return (
        f'<section class="box figure"><h2>{title}</h2><p class="soft">{about}</p>'
        f'<div class="scroll">{plot}</div></section>\n'
    )


def _table(report: Report) -> str:
    worst = errors(converted(report)).worst
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in COLUMNS)
    most = worst.error if worst and math.isfinite(worst.error) else 0.0
    rows, previous = [], None
    for layer in report.layers:
        rows.append(_row(layer, most, layer is worst, first=layer.layer != previous))
        previous = layer.layer
    return (
        '<section class="box"><h2>All decoder linears</h2><div class="table"><table><thead><tr>'
        f"{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div></section>\n"
    )


def _row(layer: LayerReport, most: float, worst: bool, first: bool) -> str:
    tag = '<span class="tag">kept</span>' if layer.kept else '<span class="tag">worst</span>' if worst else ""
    row = f'<tr class="{"first" if first else ""}{" still" if layer.kept else ""}">'
    bar = min(1.0, layer.error / most) if most and math.isfinite(layer.error) else 0.0
    zeros = layer.zeros / layer.weights if layer.weights else 0.0
    cells = (
        f'<td class="number">{layer.shape[0]:,} &times; {layer.shape[1]:,}</td>',
        f"<td>{'&ndash;' if layer.kept else _text(layer.pattern)}</td>",
        f"<td>{_text(layer.scheme)}</td>",
        f'<td class="number">{percent(zeros)}</td>',
        f'<td class="number bar" style="--w:{bar:.3f}">{percent(layer.error)}</td>',
        f'<td class="number">{percent(layer.prune_error)}</td>',
        f'<td class="number">{"&ndash;" if layer.output_error is None else percent(layer.output_error)}</td>',
        f'<td class="number">{size(layer.bytes_before)} → {size(layer.bytes_after)}</td>',
    )
    remarks = "".join(f'<span class="note">{_text(note)}</span>' for note in layer.notes)
    name = f'<th scope="row"><span class="code">{_text(layer.name)}</span>{tag}{remarks}</th>'
    return f"{row}{name}{''.join(cells)}</tr>\n"


def _recipe(report: Report) -> str:
    text = json.dumps(report.recipe, indent=2, ensure_ascii=False)
    return f'<section class="box"><h2>Recipe</h2><pre>{_text(text)}</pre></section>\n'


def _files(report: Report) -> str:
    if not report.files:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="code">{_text(digest)}</td></tr>\n'
        for name, digest in sorted(report.files.items())
    )
    return (
        f'<details class="box"><summary>File hashes ({len(report.files)})</summary><div class="table"><table>'
        f'<thead><tr><th scope="col">File</th><th scope="col">SHA-256</th></tr></thead>\n<tbody>\n{rows}</tbody>'
        "</table></div></details>\n"
    )
