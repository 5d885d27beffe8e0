"""The quality of an output: what was measured of it, and what a user must know before relying on it.

Intact files say nothing about quality: a ruined model verifies. Quality is how far the output's predictions are from
the source's, on held-out calibration text and on the text of --text. The change of the weights is no measure of it:
methods that lower the output error change the weights more.
"""

from __future__ import annotations

import math
from typing import Any

from .record import LayerReport, Report
from .summary import Figure, converted, kl, kl_error, percent, with_error

LARGE_KL = 0.3
"""Nats per token from the source, above which a report warns: perplexity is then a third higher or more. Outputs of the
presets for 2:8 are below 0.1."""
LARGE_OUTPUT_ERROR = 0.5
"""Output error of a linear above which a report warns: a quarter of its output's energy."""
FEW_TOKENS = 1000
"""Held-out tokens below which a report warns that they decide little."""


def measured_linears(report: Report) -> list[LayerReport]:
    """The converted linears whose output error is known."""
    return [layer for layer in converted(report) if layer.output_error is not None]


def divergences(report: Report) -> list[tuple[str, float]]:
    """The measured KL divergences from the source, with the text that each was measured on."""
    found = []
    if report.held_out:
        found.append(("held-out calibration text", report.held_out.kl))
    on_text = report.comparison.get("kl_mean")
    return [*found, *([("the text", on_text)] if on_text is not None else [])]


def figures(report: Report) -> list[Figure]:
    """The figures on held-out calibration text, the output error first; [] without calibration."""
    held, linears = report.held_out, measured_linears(report)
    if held is None or not linears:
        return []
    worst = _worst(linears)
    mean = sum(layer.output_error or 0.0 for layer in linears) / len(linears)
    sequences = "sequence" if held.sequences == 1 else "sequences"
    on = f"on {held.sequences:,} held-out calibration {sequences} of {held.length:,} tokens"
    return [
        Figure(
            "Output error",
            percent(mean),
            f"mean over {len(linears):,} linears, {on}; worst {percent(worst.output_error or 0.0)} ({worst.name})",
        ),
        Figure(
            "Error after the last layer",
            percent(held.layer_errors[-1]),
            "of the hidden states, with the errors of all layers",
        ),
        Figure(
            "KL divergence, held out",
            with_error(kl(held.kl), kl_error(held.kl_stderr)),
            f"nats per token from the source, {on}, activations not quantized",
        ),
        Figure(
            "Perplexity, held out",
            f"{held.source_perplexity:.3f} → {held.output_perplexity:.3f}",
            f"of source and output, ratio {held.ratio:.4f}",
        ),
    ]


def output_error_json(report: Report) -> dict[str, Any] | None:
    """Mean and worst output error with the name of that linear, for machines; None if they were not measured."""
    linears = measured_linears(report)
    if not linears:
        return None
    errors = [layer.output_error or 0.0 for layer in linears]
    worst = _worst(linears)
    return {"mean": sum(errors) / len(errors), "worst": {"name": worst.name, "error": worst.output_error}}


def measured(report: Report) -> bool:
    """Whether anything is known about the quality of the output."""
    return bool(divergences(report) or report.perplexity)


def warnings(report: Report) -> list[str]:
    """Sentences on measured figures that are large, and on those that rest on little text."""
    found = []
    for where, value in divergences(report):
        if not value <= LARGE_KL:
            found.append(
                f"The output's predictions are far from the source's: KL divergence {value:.3g} nats per token on "
                f"{where}, more than {LARGE_KL:g}."
            )
    linears = measured_linears(report)
    large = [layer for layer in linears if not (layer.output_error or 0.0) <= LARGE_OUTPUT_ERROR]
    if large:
        worst = _worst(large)
        found.append(
            f"The outputs of {len(large)} of {len(linears)} linears change by more than {LARGE_OUTPUT_ERROR:.0%} on "
            f"held-out calibration text, that of {worst.name} by {worst.output_error or 0.0:.0%}."
        )
    held = report.held_out
    if held and held.sequences * held.length < FEW_TOKENS and report.comparison.get("kl_mean") is None:
        found.append(
            f"Only {held.sequences * held.length} tokens of the calibration text were held out to measure this: "
            "measure on a text of your own (--text)."
        )
    return found


def _worst(linears: list[LayerReport]) -> LayerReport:
    return max(linears, key=lambda layer: (math.isnan(layer.output_error or 0.0), layer.output_error or 0.0))
