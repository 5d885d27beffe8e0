"""The model card (README.md) of a converted checkpoint: conversion, measurements, and commands to load and verify it.

All numbers come from the report; the card does not mention what was not measured. Names and notes may come from an
untrusted checkpoint, so Markdown and HTML in them are escaped. The front matter is the Hub's metadata.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..core.hub_id import valid_id
from ..core.patterns import parse_pattern
from ..core.schemes import SCHEMES
from ..errors import printable
from . import quality
from .loading import how_to_check, how_to_load
from .record import LayerReport, Report
from .source_card import CARRIED
from .summary import (
    as_yaml,
    by_kind,
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

NAMES_SHOWN = 3
"""The number of linears that a note names; it counts the others."""


def render_card(
    report: Report, *, repo: str | None = None, branch: str | None = None, package: str | None = None
) -> str:
    """The whole README.md.

    repo: the Hub id in the commands; None for the placeholders PATH and CKPT. branch: its branch; None for main.
    package: the wheel or repository that the commands install slideconvert from; None for the placeholder PACKAGE.
    """
    sections = [
        _front_matter(report),
        f"# {_text(report.source)}, {_what(report)}\n\n{_about(report)}",
        f"## Measured\n\n{_warnings(report)}{_measured(report)}",
        f"## Recipe\n\n{_fenced(as_yaml(report.recipe), 'yaml')}",
        f"## Load\n\n{_loading(report, repo, branch, package)}",
        f"## Check\n\n{_verdict(report)} {how_to_check(repo, branch)}",
        f"## Limits\n\n{_limits(report)}",
    ]
    return "\n".join(sections)


def _license_link(report: Report, link: Any, *, on_hub: bool) -> str:
    """The source's link to its licence, as it holds here: to the web, to a file that travels with the model, or to one
    of the source on the Hub; "" if it leads nowhere."""
    if not isinstance(link, str):
        return ""
    if link.startswith(("https://", "http://")) or link in report.files:
        return link
    local = on_hub and urlsplit(link).scheme == "" and not link.startswith("/") and ".." not in link.split("/")
    return f"https://huggingface.co/{report.source}/blob/{report.revision or 'main'}/{link}" if local else ""


def _front_matter(report: Report) -> str:
    quantized, sparse = _quantized(report), _sparse(report)
    metadata = {name: report.source_card[name] for name in CARRIED if name in report.source_card}
    on_hub = "/" in report.source and valid_id(report.source)  # else the source is a local folder
    if "license_link" in metadata:
        link = _license_link(report, metadata.pop("license_link"), on_hub=on_hub)
        metadata |= {"license_link": link} if link else {}
    if on_hub:
        metadata["base_model"] = report.source
        if quantized:
            metadata["base_model_relation"] = "quantized"
    metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = "text-generation"
    form = ["compressed-tensors", *quantized] if quantized else []
    metadata["tags"] = ["slideconvert", "slidesparse", *form, *(["sparse"] if sparse else []), *patterns(report)]
    return f"---\n{as_yaml(metadata)}---\n"


def _quantized(report: Report) -> list[str]:
    """The names of the quantized schemes in use."""
    return [name for name in schemes(report) if name in SCHEMES and SCHEMES[name].quantized]


def _loading(report: Report, repo: str | None, branch: str | None, package: str | None) -> str:
    by_groups = any(parse_pattern(name).whole_groups for name in patterns(report))
    return how_to_load(
        report.layout, _quantized(report), by_groups=by_groups, repo=repo, branch=branch, package=package
    )


def _sparse(report: Report) -> bool:
    """Whether any linear follows a pattern that requires zeros; only 2:inf does not."""
    return any(parse_pattern(name).prunes for name in patterns(report))


def _text(text: str) -> str:
    """Text for Markdown prose and tables: one line, no markup, no HTML."""
    flat = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", html.escape(flat, quote=False))


def _code(text: str) -> str:
    """Text as inline code. Backticks and pipes, which would end the span or the table cell, are replaced."""
    return f"`{' '.join(printable(text).split()).replace('`', chr(0xFFFD)).replace('|', chr(0xFFFD))}`"


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than every run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text)}{fence}\n"


def _what(report: Report) -> str:
    """'2:8 sparse INT8'."""
    names = " + ".join(patterns(report))
    return " ".join(part for part in (names + " sparse" * _sparse(report), " + ".join(schemes(report)).upper()) if part)


def _about(report: Report) -> str:
    """One paragraph: the source, the patterns and schemes of the linears, and the number of kept linears."""
    count = len(converted(report))
    kept = len(report.layers) - count
    source = _code(report.source) + (f" (revision {_code(report.revision)})" if report.revision else "")
    rules = [
        f"{parse_pattern(name).describe()} ({name}" + (f", {used:,} linears)" if len(patterns(report)) > 1 else ")")
        for name, used in patterns(report).items()
        if parse_pattern(name).prunes
    ]
    unpruned = patterns(report).get("2:inf", 0)
    if unpruned:
        rules.append(f"no weight is pruned (2:inf, {unpruned:,} linears)")
    sentences = [
        f"{source}, converted by slideconvert {__version__}.",
        f"In {count:,} of its {len(report.layers):,} decoder linears {' or '.join(rules)}." if rules else "",
        *(_storage(name, sum(layer.scheme == name for layer in converted(report))) for name in schemes(report)),
        f"{kept:,} {'linear is' if kept == 1 else 'linears are'} kept as in the source." if kept else "",
        "Everything else (embeddings, norms, head) is copied from the source.",
    ]
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def _storage(name: str, count: int) -> str:
    weights = f"{count:,} {'linear stores its' if count == 1 else 'linears store their'} weights as {name.upper()}"
    if name in SCHEMES and SCHEMES[name].quantized:
        scheme = SCHEMES[name]
        quantized = "are quantized per token when the model runs"
        activations = quantized if scheme.activation_bits == 8 else "stay floats"
        return f"{weights} with one scale per {scheme.scale_unit}; activations {activations}."
    return f"{weights}, not quantized."


def _warnings(report: Report) -> str:
    """What speaks against using the checkpoint, before the figures; "" for nothing."""
    return "".join(f"**Warning**: {_text(warning)}\n\n" for warning in quality.warnings(report))


def _measured(report: Report) -> str:
    """What was measured on text, sizes and zeros; then the weight change by kind of linear."""
    sums = report.totals
    held = quality.figures(report)
    rows: list[tuple[str, ...]] = [
        *((figure.name, *figure.value.rpartition(" → ")[::2]) for figure in held),
        ("All weight files", _bytes(sums.file_bytes_before), _bytes(sums.file_bytes_after)),
        ("Decoder linears", _bytes(sums.linear_bytes_before), _bytes(sums.linear_bytes_after)),
        ("Zeros in the decoder linears", "", f"{percent(zero_share(report))} ({sums.zeros:,} of {sums.weights:,})"),
    ]
    legal = legal_share(report)
    if legal is not None:
        rows.append(("Blocks that already had two zeros", "", percent(legal)))
    if report.perplexity:
        values = perplexities(report)
        rows.append(("Perplexity", values.get("source", ""), values.get("output", "")))
    if ratio := perplexity_ratio(report):
        rows.append(("Perplexity ratio", "", ratio))
    figures = compared(report)
    rows += [(figure.name, "", figure.value) for figure in figures]
    text = _table(("", "source", "this checkpoint"), rows)
    if report.perplexity:
        text += f"\nPerplexity protocol: {_text(report.perplexity_protocol) or 'not recorded'}.\n"
    text += "".join(f"\n{figure.name}: {_text(figure.about)}.\n" for figure in (*held, *figures))
    layers = converted(report)
    if not layers:
        return text
    found = {_code(kind): errors(members) for kind, members in by_kind(layers).items()} | {"all kinds": errors(layers)}
    lines = [
        (kind, f"{part.count:,}", percent(part.mean), percent(part.worst.error), _code(part.worst.name))
        for kind, part in found.items()
        if part.worst
    ]
    return (
        f"{text}\n<details><summary>Weight change by kind and layer</summary>\n\n"
        "Relative weight change: ||W - W'|| / ||W|| (Frobenius norms), where W is the source weight; it does not rank "
        "methods. Means are over linears and exclude kept ones.\n\n"
        + _table(("kind", "linears", "mean change", "worst change", "worst linear"), lines)
        + f"\n{_worst_by_layer(layers)}\n</details>\n"
    )


def _worst_by_layer(layers: Sequence[LayerReport]) -> str:
    """One row per decoder layer: its largest weight change, and the output error of that linear if it was measured."""
    found: dict[int, list[LayerReport]] = {}
    for layer in layers:
        found.setdefault(layer.layer, []).append(layer)
    measured = any(layer.output_error is not None for layer in layers)
    rows = []
    for number, members in sorted(found.items()):
        worst = errors(members).worst
        if worst:
            output = "" if worst.output_error is None else percent(worst.output_error)
            rows.append((f"{number}", percent(worst.error), *([output] if measured else []), _code(worst.name)))
    head = ("layer", "worst change", *(["output error"] if measured else []), "linear")
    text = _table(head, rows)
    explanation = "The output error is that of the same linear, on held-out calibration text."
    return text + (f"\n{explanation}\n" if measured else "")


def _bytes(count: int) -> str:
    return f"{size(count)} ({count:,} bytes)"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table: the first column aligned left, the others right."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _verdict(report: Report) -> str:
    if report.verified:
        tensors = "tensor" if report.verified == 1 else "tensors"
        return f"slideconvert read back and checked {report.verified:,} {tensors} after writing: the files are intact."
    return "**Not verified**: slideconvert did not read the files back after writing."


def _limits(report: Report) -> str:
    how = "and trained the remaining weights against the source model" if report.training else "without retraining"
    unknown = "" if quality.measured(report) else " Its quality was not measured."
    items = [
        f"slideconvert pruned and quantized the model {how}.{unknown} Evaluate it on your own task before you use it.",
    ]
    for note, names in notes(report):
        shown = ", ".join(_code(name) for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        items.append(_text(note) + (f": {shown}{more}" if names else ""))
    if _quantized(report):
        items.append(
            "transformers with slideconvert, or with the code in this repository, refuses tensor parallelism and "
            "offloading to disk or CPU."
        )
    items.append("The limits and the license of the source model apply to this model too.")
    return "".join(f"- {item}\n" for item in items)
