"""A conversion report as one HTML page without scripts or external resources; equal reports give equal bytes.

Every name on the page may come from an untrusted checkpoint, so `_text` escapes all text. As a second line of defence,
the content security policy of the page forbids scripts and requests.
"""

from __future__ import annotations

import math

from ..errors import UNKNOWN
from . import quality
from .layer_plots import OUTPUT_ERROR, WEIGHT_CHANGE, LayerBytes, bytes_plot, error_plot
from .page import NUMBER, figure, whole_page
from .page import escaped as _text
from .record import LayerReport, Report
from .summary import as_yaml, converted, errors, notes, patterns, percent, schemes, size
from .tiles import key_figures
from .trade import trade_off
from .training import training_plot, training_table

NAMES_SHOWN = 3
"""The number of linears that a note names; it counts the others, and the table shows the note at each linear."""

OUTPUT = ("Output error", NUMBER)
"""The column that is absent where no output error was measured."""
COLUMNS = (
    ("Linear and notes", ""),
    ("Out &times; in", NUMBER),
    ("Pattern", ""),
    ("Scheme", ""),
    ("Zeros", NUMBER),
    OUTPUT,
    ("Weight change", NUMBER),
    ("Pruning alone", NUMBER),
    ("Bytes", NUMBER),
)


def render_html(report: Report) -> str:
    """The whole page."""
    plots = _plots(report) if report.layers else ""
    above = (
        _head(report) + trade_off(report) + _verdict(report) + _quality(report) + _notes(report) + key_figures(report)
    )
    below = _table(report) + _weight_change(report) + _recipe(report) + _files(report)
    body = above + plots + _training(report) + below
    return whole_page(f"{report.source} → {_what(report)}", body)


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
    """Whether the files hold what was written. Zero checked tensors prove nothing, so they count as not verified."""
    if report.verified:
        count = f"{report.verified:,} {'tensor' if report.verified == 1 else 'tensors'}"
        return (
            f'<section class="verdict good"><strong>✓ Files intact: {count}</strong>'
            "slideconvert read the written files back and checked them. This says nothing about quality.</section>\n"
        )
    return (
        '<section class="verdict bad"><strong>✗ NOT VERIFIED</strong>The written files were not read back. '
        "Run <code>slideconvert verify CKPT</code> before you use them.</section>\n"
    )


def _quality(report: Report) -> str:
    """What was measured of the output, apart from its files: warnings, or none, or that nothing was measured."""
    if not quality.measured(report):
        return (
            '<section class="verdict unknown"><strong>Quality not measured</strong>'
            "Measure it: <code>slideconvert eval SOURCE CKPT --text FILE</code>.</section>\n"
        )
    found = quality.warnings(report)
    if not found:
        return (
            '<section class="verdict good"><strong>✓ Quality: no warning</strong>'
            "The output's predictions are near the source's on the text below. Evaluate it on your task.</section>\n"
        )
    items = "".join(f"<li>{_text(sentence)}</li>\n" for sentence in found)
    return (
        '<section class="verdict warned"><strong>Quality: read this before you use the output</strong>'
        f"<ul>\n{items}</ul></section>\n"
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


def _plots(report: Report) -> str:
    found = ""
    if not LayerBytes.of(report.layers).equal:
        stored = "Weights and scales of the linears of each layer, as stored."
        found = figure("Bytes per decoder layer", stored, bytes_plot(report.layers))
    if report.held_out is None:
        return found
    about = (
        "‖X(W&prime; &minus; W)‖ / ‖XW‖ of each converted linear, where X are its inputs in the output on held-out "
        "calibration text. Dashed: the same for the hidden states after each layer, with all errors before it."
    )
    plot = error_plot(report.layers, OUTPUT_ERROR, report.held_out.layer_errors)
    return figure("Output error per decoder layer", about, plot) + found


def _weight_change(report: Report) -> str:
    """How far the weights moved, which says little about quality: a detail."""
    found = errors(converted(report))
    if not found.worst:
        return ""
    kept = " Hollow marks: kept linears." if any(layer.kept for layer in report.layers) else ""
    about = (
        "‖W &minus; W&prime;‖ / ‖W‖ of each linear, where W is its source weight: pruning and quantization together. "
        "Methods that lower the output error change weights more. "
        f"Mean {percent(found.mean)} over {found.count:,} linears; worst {percent(found.worst.error)}, "
        f"<code>{_text(found.worst.name)}</code>.{kept}"
    )
    return (
        f'<details class="box"><summary>Weight change</summary><p class="soft">{about}</p>'
        f"{error_plot(report.layers, WEIGHT_CHANGE)}</details>\n"
    )


def _training(report: Report) -> str:
    if not report.training:
        return ""
    about = (
        "The remaining weights were trained against the dense model. slideconvert keeps the epoch with the lowest loss "
        "on held-out calibration sequences. Loss of a layer: squared error of its output over the square of what the "
        "layer adds to its input, all tokens alike. Loss end to end: Kullback-Leibler divergence per token in nats"
        + (" (preset paper: cross-entropy)." if report.recipe.get("preset") == "paper" else ".")
    )
    return figure(
        "Training",
        about,
        f'<div class="scroll">{training_plot(report.training)}</div>' + training_table(report.training),
    )


def _table(report: Report) -> str:
    by_output = any(layer.output_error is not None for layer in report.layers)
    values = [_shown_error(layer, by_output) for layer in converted(report)]
    finite = [value for value in values if math.isfinite(value)]
    most = max(finite, default=0.0)
    bars = len(set(finite)) > 1
    shown = [column for column in COLUMNS if by_output or column != OUTPUT]
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in shown)
    rows, previous = [], None
    for layer in report.layers:
        rows.append(_row(layer, most if bars else 0.0, by_output, first=layer.layer != previous))
        previous = layer.layer
    return (
        '<section class="box"><h2>All decoder linears</h2><div class="table"><table><thead><tr>'
        f"{heads}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div></section>\n"
    )


def _shown_error(layer: LayerReport, by_output: bool) -> float:
    """What the bars of the table show: output errors if they were measured, else weight changes."""
    return (layer.output_error or 0.0) if by_output else layer.error


def _row(layer: LayerReport, most: float, by_output: bool, first: bool) -> str:
    """most: the value of the longest bar; 0 for no bars, which say nothing where all are equal."""
    value = _shown_error(layer, by_output)
    worst = not layer.kept and (0 < value == most or not math.isfinite(value))
    tag = '<span class="tag">kept</span>' if layer.kept else '<span class="tag">worst</span>' if worst else ""
    row = f'<tr class="{"first" if first else ""}{" still" if layer.kept else ""}">'
    bar = f' bar" style="--w:{min(1.0, value / most) if math.isfinite(value) else 0.0:.3f}' if most else ""
    zeros = layer.zeros / layer.weights if layer.weights else 0.0
    cells = (
        f'<td class="number">{layer.shape[0]:,} &times; {layer.shape[1]:,}</td>',
        f"<td>{'&ndash;' if layer.kept else _text(layer.pattern)}</td>",
        f"<td>{_text(layer.scheme)}</td>",
        f'<td class="number">{percent(zeros)}</td>',
        *([_output(layer, bar)] if by_output else []),
        f'<td class="number{bar * (not by_output)}">{percent(layer.error)}</td>',
        f'<td class="number">{percent(layer.prune_error)}</td>',
        f'<td class="number">{size(layer.bytes_before)} → {size(layer.bytes_after)}</td>',
    )
    remarks = "".join(f'<span class="note">{_text(note)}</span>' for note in layer.notes)
    name = f'<th scope="row"><span class="code">{_text(layer.name)}</span>{tag}{remarks}</th>'
    return f"{row}{name}{''.join(cells)}</tr>\n"


def _output(layer: LayerReport, bar: str) -> str:
    """The cell of a linear's output error."""
    value = UNKNOWN if layer.output_error is None else percent(layer.output_error)
    return f'<td class="number{bar}">{value}</td>'


def _recipe(report: Report) -> str:
    """As YAML, which --recipe takes."""
    return f'<section class="box"><h2>Recipe</h2><pre>{_text(as_yaml(report.recipe))}</pre></section>\n'


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
