"""What is known of one checkpoint without running it: from its headers, its record and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..allocate.expected import TimedLinear
from ..checkpoint.files import REPORT_JSON
from ..checkpoint.reader import Checkpoint
from ..core.patterns import BlockPattern
from ..errors import InputError
from ..formats.record import describe_linear, read_record
from ..models.families import decoder_linears
from ..report import Report
from .quality import Quality, qualities


@dataclass(frozen=True)
class Entry:
    """One checkpoint of a comparison.

    name: as it is shown. path: as it was given. source: what its report is against, or what it was made from, "" if
    that is unknown. layout: "" of checkpoints of other tools. schemes, patterns: how many decoder linears have which.
    bytes: of all weight files. linear_bytes, weights: of all decoder linears, as stored. baseline: whether it is what
    the others are compared with. layers: decoder layer by the name of the linear. qualities: what was measured, by
    kind. output_errors: by the name of the linear, those that were measured. layer_errors: of the hidden states behind
    each layer. reported: whether it has a report.
    """

    name: str
    path: str
    source: str
    layout: str
    schemes: Mapping[str, int]
    patterns: Mapping[str, int]
    bytes: int
    linear_bytes: int
    weights: int
    baseline: bool
    layers: Mapping[str, int]
    timed: tuple[TimedLinear, ...] = field(repr=False)
    qualities: Mapping[str, Quality]
    output_errors: Mapping[str, float]
    layer_errors: tuple[float, ...]
    reported: bool

    @property
    def bits(self) -> float:
        """Bits per weight of the decoder linears, scales and metadata included."""
        return 8 * self.linear_bytes / self.weights

    def mean_errors(self) -> dict[int, float]:
        """By decoder layer, the mean output error of its linears, as far as it was measured."""
        found: dict[int, list[float]] = {}
        for linear, error in self.output_errors.items():
            found.setdefault(self.layers[linear], []).append(error)
        return {layer: sum(errors) / len(errors) for layer, errors in found.items()}


def read_entry(checkpoint: Checkpoint, name: str, path: str, *, source: str = "", baseline: bool = False) -> Entry:
    """Read the headers, the record and the report of a checkpoint; no weights.

    source: of the baseline, which has no record. InputError for a checkpoint or report that cannot be read.
    """
    record = read_record(checkpoint.config, path)
    report = None if baseline else _report(checkpoint.path)
    linears = decoder_linears(checkpoint.config)
    timed, stored_bytes = [], 0
    for linear in linears:
        entry = record.linears.get(linear.name) if record else None
        stored = describe_linear(checkpoint, record, linear.name)
        pattern = entry.pattern if entry and entry.pattern else BlockPattern(None)
        timed.append(TimedLinear(linear, stored.shape, stored.scheme, pattern, kept=entry is None))
        stored_bytes += stored.bytes
    layers = {linear.name: linear.layer for linear in linears}
    errors = {one.name: one.output_error for one in report.layers} if report else {}
    return Entry(
        name=name,
        path=path,
        source=report.source if report else str(record.source["id"]) if record else source,
        layout=record.layout if record else "",
        schemes=Counter(one.scheme.label for one in timed),
        patterns=Counter(str(one.pattern) for one in timed if not one.kept),
        bytes=checkpoint.bytes,
        linear_bytes=stored_bytes,
        weights=sum(one.shape[0] * one.shape[1] for one in timed),
        baseline=baseline,
        layers=layers,
        timed=tuple(timed),
        qualities=qualities(report) if report else {},
        output_errors={linear: error for linear, error in errors.items() if error is not None and linear in layers},
        layer_errors=report.held_out.layer_errors if report and report.held_out else (),
        reported=report is not None,
    )


def _report(folder: Path) -> Report | None:
    """report.json of a checkpoint; None if it has none. InputError if it cannot be read."""
    path = folder / REPORT_JSON
    if not path.exists():
        return None
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no report of this slideconvert ({type(error).__name__}: {error})",
            hint="convert the model again, or delete the file to compare what is known without it",
        ) from error
