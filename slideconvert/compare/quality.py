"""How far a checkpoint is from its source: what its conversion reported, or what was measured for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..report import Report

MEASURED, TEXT, HELD_OUT = "measured", "text", "held-out"
"""Kinds of measurements, best first: for this comparison, on --text of the conversion, on held-out calibration text."""
CLOSE = 1e-4
"""Perplexities of a source that differ by less are of the same text: reports keep six digits."""
COMPARED = ("ratio", "ratio_stderr", "same_top", "same_top_stderr")


@dataclass(frozen=True)
class Quality:
    """A measurement of a checkpoint on a text.

    kind: one of the three above. on: the text and how it was read. source_perplexity: of the source on it. ratio:
    perplexity over that of the source. kl: mean KL divergence from the source, in nats per token. same_top: share of
    positions where both expect the same token most. Numbers that were not measured are None.
    """

    kind: str
    on: str
    perplexity: float | None
    source_perplexity: float | None
    perplexity_stderr: float | None = None
    ratio: float | None = None
    ratio_stderr: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    same_top: float | None = None
    same_top_stderr: float | None = None


def qualities(report: Report) -> dict[str, Quality]:
    """The measurements of a conversion, by kind."""
    found = {}
    if "output" in report.perplexity:
        said = report.comparison
        found[TEXT] = Quality(
            TEXT,
            report.perplexity_protocol,
            report.perplexity["output"],
            report.perplexity.get("source"),
            report.perplexity_stderr.get("output"),
            kl=said.get("kl_mean"),
            kl_stderr=said.get("kl_stderr"),
            **{name: said.get(name) for name in COMPARED},
        )
    if held := report.held_out:
        on = f"{held.sequences} held-out calibration sequences of {held.length} tokens, activations not quantized"
        found[HELD_OUT] = Quality(
            HELD_OUT,
            on,
            held.output_perplexity,
            held.source_perplexity,
            ratio=held.ratio,
            kl=held.kl,
            kl_stderr=held.kl_stderr,
        )
    return found


def measured_quality(row: Mapping[str, Any], source: Mapping[str, Any], on: str) -> Quality:
    """From the rows of `evaluate.compare.measure` of a checkpoint and of the baseline."""
    return Quality(
        MEASURED,
        on,
        row["perplexity"],
        source["perplexity"],
        row["perplexity_stderr"],
        kl=row["kl_mean"],
        kl_stderr=row["kl_stderr"],
        **{name: row[name] for name in COMPARED},
    )


def comparable(found: Sequence[Mapping[str, Quality]]) -> list[Quality | None]:
    """One measurement of each checkpoint: of the best kind that all of those have that have any; where there is no
    such kind, the best of each."""
    some = [kinds for kinds in found if kinds]
    shared = next((kind for kind in (TEXT, HELD_OUT) if some and all(kind in kinds for kinds in some)), None)
    order = [shared] if shared else [TEXT, HELD_OUT]
    return [next((kinds[kind] for kind in order if kind in kinds), None) for kinds in found]


def doubts(shown: Mapping[str, Quality | None]) -> list[str]:
    """Why the shown measurements, by the name of the checkpoint, cannot be compared with each other; [] if they can."""
    texts: list[tuple[Quality, list[str]]] = []
    for name, quality in shown.items():
        if quality is None:
            continue
        same = next((names for one, names in texts if _same_text(one, quality)), None)
        if same is None:
            texts.append((quality, [name]))
        else:
            same.append(name)
    if len(texts) < 2:
        return []
    parts = "; ".join(f"{', '.join(names)}: {quality.on}{_source(quality)}" for quality, names in texts)
    return [
        f"Measured on different texts or sources, so KL and perplexity do not compare: {parts} (measure all: --text)."
    ]


def _same_text(one: Quality, other: Quality) -> bool:
    """Whether both were read in the same way, and the source has the same perplexity there."""
    if one.on != other.on or one.source_perplexity is None or other.source_perplexity is None:
        return False
    return abs(one.source_perplexity / other.source_perplexity - 1) < CLOSE


def _source(quality: Quality) -> str:
    return "" if quality.source_perplexity is None else f", perplexity of the source {quality.source_perplexity:.3f}"
