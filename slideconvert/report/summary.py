"""Figures derived from a Report and their formatting, shared by the HTML page and the model card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UNKNOWN
from ..models.families import KINDS
from .record import LayerReport, Report

NAMED = 4
"""Linears that a note names; it counts the others."""
_UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass(frozen=True)
class ErrorSummary:
    """Relative errors of some linears: their count, mean error, and worst linear (None if there are no linears)."""

    count: int
    mean: float
    worst: LayerReport | None


def converted(report: Report) -> list[LayerReport]:
    """The linears that were not kept: kept linears have no error and would lower every mean."""
    return [layer for layer in report.layers if not layer.kept]


def errors(layers: Sequence[LayerReport]) -> ErrorSummary:
    """The errors of these linears. A non-finite error counts as worse than any number."""
    if not layers:
        return ErrorSummary(0, 0.0, None)
    worst = max(layers, key=lambda layer: (not math.isfinite(layer.error), layer.error))
    return ErrorSummary(len(layers), sum(layer.error for layer in layers) / len(layers), worst)


def by_kind(layers: Iterable[LayerReport]) -> dict[str, list[LayerReport]]:
    """Linears by kind: known kinds in model order, then others by name."""
    found: dict[str, list[LayerReport]] = {}
    for layer in layers:
        found.setdefault(layer.kind, []).append(layer)
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: (order.get(kind, len(order)), kind))}


def patterns(report: Report) -> dict[str, int]:
    """Pattern -> number of converted linears that follow it, shortest pattern first, 2:inf last."""
    names = [layer.pattern for layer in converted(report) if layer.pattern]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (len(name), name))}


def schemes(report: Report) -> list[str]:
    """The names of the schemes of the converted linears, in alphabetical order."""
    return sorted({layer.scheme for layer in converted(report)})


def notes(report: Report) -> list[tuple[str, list[str]]]:
    """Every note once, with the names of its linears or of the parts that were trained. Notes on the whole model come
    first and have no names."""
    found: dict[str, list[str]] = {note: [] for note in report.notes}
    for part in report.training:
        for note in part.notes:
            found.setdefault(note, []).append(part.part)
    for layer in report.layers:
        for note in layer.notes:
            found.setdefault(note, []).append(layer.name)
    return list(found.items())


def told(report: Report) -> list[str]:
    """`notes` as text, each with its first names and the number of the others."""
    lines = []
    for note, names in notes(report):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{', '.join(names[:NAMED])}{more}: {note}" if names else note)
    return lines


def zero_share(report: Report) -> float:
    """The share of zeros, 0 to 1, among the weights of all decoder linears, including kept ones."""
    return report.totals.zeros / report.totals.weights if report.totals.weights else 0.0


def legal_share(report: Report) -> float | None:
    """The share of blocks, 0 to 1, that had enough zeros before pruning; None if no linear counts them."""
    counted = [layer for layer in converted(report) if layer.legal_groups is not None and layer.pattern != "2:inf"]
    groups = sum(layer.groups for layer in counted)
    return sum(layer.legal_groups or 0 for layer in counted) / groups if groups else None


@dataclass(frozen=True)
class Figure:
    """A measured figure of the output against the source: its name, its value with the standard error, and what it
    is, all as text."""

    name: str
    value: str
    about: str


def compared(report: Report) -> list[Figure]:
    """Divergence of the output from the source on a text; [] if it was not measured."""
    found = report.comparison
    if found.get("kl_mean") is None:
        return []
    tails = {"median": "kl_median", "99th percentile": "kl_99", "99.9th": "kl_99_9", "maximum": "kl_max"}
    spread = ", ".join(f"{name} {kl(found[key])}" for name, key in tails.items())
    mass = found["top_mass"]
    bound = "" if mass == 1 else f"; a lower bound, {most_likely(found['top'], mass)}"
    return [
        Figure(
            "KL divergence from the source",
            with_error(kl(found["kl_mean"]), kl_error(found["kl_stderr"])),
            f"nats per token, mean of {found['tokens']:,}; {spread}{bound}",
        ),
        Figure(
            "Same top token",
            with_error(share(found["same_top"]), share(found["same_top_stderr"])),
            "of positions where source and output rank the same token first",
        ),
        Figure(
            "Expected acceptance",
            with_error(share(found["acceptance"]), share(found["acceptance_stderr"])),
            "of the tokens that it drafts for the source in speculative decoding",
        ),
    ]


def most_likely(count: float | None, mass: float | None) -> str:
    """What a divergence is computed from, where that is not every token. mass: the probability of so many tokens."""
    number = UNKNOWN if count is None else f"{count:,.0f}"
    return f"from the {number} most likely tokens ({share(mass)} of the probability)"


def perplexity_ratio(report: Report) -> str:
    """Perplexity of the output over that of the source with the standard error; "" if it was not measured."""
    found = report.comparison
    if found.get("ratio_stderr") is None:
        return ""
    return with_error(f"{found['ratio']:.4f}", f"{found['ratio_stderr']:.4f}")


def perplexities(report: Report) -> dict[str, str]:
    """'source' and 'output', as far as they were measured -> perplexity with the standard error."""
    errors = {side: report.perplexity_stderr.get(side) for side in report.perplexity}
    return {
        side: with_error(f"{value:.3f}", UNKNOWN if errors[side] is None else f"{errors[side]:.3f}")
        for side, value in report.perplexity.items()
    }


def with_error(value: str, error: str) -> str:
    """'0.153 ± 0.0041', or the value alone if its standard error is UNKNOWN."""
    return value if error == UNKNOWN else f"{value} ± {error}"


def kl(value: float | None) -> str:
    """A KL divergence in nats with three digits; UNKNOWN for None."""
    return UNKNOWN if value is None else f"{max(value, 0.0):.3g}"


def kl_error(value: float | None) -> str:
    """The standard error of a mean KL divergence with two digits; UNKNOWN for None."""
    return UNKNOWN if value is None else f"{value:.2g}"


def share(value: float | None) -> str:
    """0.97123 -> '97.1%'; UNKNOWN for None."""
    return UNKNOWN if value is None else f"{value:.1%}"


def percent(share: float, digits: int = 2) -> str:
    """0.18724 -> '18.72%'."""
    return f"{100 * share:.{digits}f}%"


def size(count: int) -> str:
    """A number of bytes in decimal units with three digits: 2471645608 -> '2.47 GB'."""
    if count < 1000:
        return f"{count} B"
    power = 1
    while count / 1000**power >= 999.5 and power < 4:
        power += 1
    value = count / 1000**power
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {_UNITS[power]}"


def as_yaml(values: dict[str, Any]) -> str:
    """Front matter, or a recipe as --recipe takes it."""
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10_000)
