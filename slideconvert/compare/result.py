"""Checkpoints side by side, and what must be known to read them so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..allocate.expected import Expected, expected_times
from ..allocate.speed import SpeedTable
from ..errors import InputError
from .entry import Entry
from .quality import Quality, comparable, doubts


@dataclass(frozen=True)
class Side:
    """A checkpoint with the measurement that is shown of it, and its expected times on the GPU; None if unknown."""

    entry: Entry
    quality: Quality | None
    expected: Expected | None

    @property
    def speedup(self) -> float | None:
        """Of the linears over dense 8-bit ones."""
        return self.expected.speedup if self.expected else None


@dataclass(frozen=True)
class Compared:
    """The result of `compare`: checkpoints in their order, the baseline first if there is one.

    gpu, tokens: of the expected times; "" and 0 without a GPU. notes: sentences on what is missing and on what does not
    compare.
    """

    sides: tuple[Side, ...]
    gpu: str
    tokens: int
    notes: tuple[str, ...]

    @property
    def layers(self) -> list[int]:
        """The decoder layers of which some checkpoint has output errors."""
        return sorted({layer for side in self.sides for layer in side.entry.mean_errors()})

    @property
    def linears(self) -> list[str]:
        """The linears of which some checkpoint has an output error, in the order of the model."""
        known = {name for side in self.sides for name in side.entry.output_errors}
        order = {name: None for side in self.sides for name in side.entry.layers}
        return [name for name in order if name in known]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "gpu": self.gpu or None,
            "tokens": self.tokens or None,
            "checkpoints": [_side_json(side) for side in self.sides],
            "layers": [
                {"layer": layer, "output_error": {s.entry.name: s.entry.mean_errors().get(layer) for s in self.sides}}
                for layer in self.layers
            ],
            "linears": [
                {"name": name, "output_error": {s.entry.name: s.entry.output_errors.get(name) for s in self.sides}}
                for name in self.linears
            ],
            "notes": list(self.notes),
        }


def side_by_side(
    entries: Sequence[Entry], table: SpeedTable | None, tokens: int, measured: Sequence[Quality | None]
) -> Compared:
    """Put checkpoints next to each other.

    table, tokens: of the times on a GPU. measured: of each entry for this comparison, () if nothing was measured.
    InputError if the table has no time for any checkpoint.
    """
    quality = list(measured) or comparable([one.qualities for one in entries])
    if not measured:
        quality = [
            _of_baseline(one, entries, quality) if one.baseline else own
            for one, own in zip(entries, quality, strict=True)
        ]
    expected, notes = _expected(entries, table, tokens)
    shown = {one.name: found for one, found in zip(entries, quality, strict=True) if not one.baseline}
    notes += doubts(shown) + _origins(entries) + _unmeasured(entries, shown)
    sides = tuple(Side(*parts) for parts in zip(entries, quality, expected, strict=True))
    return Compared(sides, table.gpu if table else "", tokens if table else 0, tuple(notes))


def _of_baseline(baseline: Entry, entries: Sequence[Entry], found: Sequence[Quality | None]) -> Quality | None:
    """What the reports of the others say of it as their source, if they say the same."""
    known = [one for entry, one in zip(entries, found, strict=True) if one and entry.source == baseline.source]
    if not known or doubts({str(number): one for number, one in enumerate(known)}):
        return None
    return Quality(known[0].kind, known[0].on, known[0].source_perplexity, known[0].source_perplexity, ratio=1.0)


def _expected(
    entries: Sequence[Entry], table: SpeedTable | None, tokens: int
) -> tuple[list[Expected | None], list[str]]:
    """The expected times of each checkpoint, and why some have none."""
    if table is None:
        return [None] * len(entries), []
    found: list[Expected | None] = []
    refused: dict[str, str] = {}
    for one in entries:
        try:
            found.append(expected_times(one.timed, table, tokens))
        except InputError as error:
            found.append(None)
            last = error
            timed = any(linear.timed for linear in one.timed)
            refused[one.name] = error.what if timed else "the times are of 8-bit linears, and it has none"
    if not any(found):
        raise last
    baselines = {one.name for one in entries if one.baseline}
    return found, [f"No expected speed of {name}: {why}." for name, why in refused.items() if name not in baselines]


def _origins(entries: Sequence[Entry]) -> list[str]:
    """What checkpoints were made from, if that differs."""
    sources: dict[str, list[str]] = {}
    for one in entries:
        if one.source:
            sources.setdefault(one.source, []).append(one.name)
    if len(sources) < 2:
        return []
    parts = "; ".join(f"{', '.join(names)} from {source}" for source, names in sources.items())
    return [f"Made from different sources, against which errors are: {parts}."]


def _unmeasured(entries: Sequence[Entry], shown: dict[str, Quality | None]) -> list[str]:
    """Which checkpoints have no report, and of which nothing was measured."""
    reportless = [one.name for one in entries if not (one.baseline or one.reported)]
    silent = [name for name, found in shown.items() if found is None and name not in reportless]
    notes = [f"No report.json: {', '.join(reportless)}."] if reportless else []
    if silent:
        notes.append(f"Quality not measured: {', '.join(silent)} (measure it: --baseline SOURCE --text FILE).")
    return notes


def _side_json(side: Side) -> dict[str, Any]:
    one, quality, expected = side.entry, side.quality, side.expected
    return {
        "name": one.name,
        "path": one.path,
        "baseline": one.baseline,
        "source": one.source or None,
        "layout": one.layout or None,
        "schemes": dict(one.schemes),
        "patterns": dict(one.patterns),
        "bytes": one.bytes,
        "linear_bytes": one.linear_bytes,
        "weights": one.weights,
        "bits_per_weight": one.bits,
        "quality": vars(quality) if quality else None,
        "layer_errors": list(one.layer_errors) or None,
        "expected": {"speedup": expected.speedup, "measured": list(expected.measured)} if expected else None,
    }
