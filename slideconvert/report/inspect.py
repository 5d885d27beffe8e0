"""The content of a checkpoint, linear by linear: of slideconvert in any layout, of another tool, or a BF16 model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.files import REPORT_JSON
from ..checkpoint.reader import Checkpoint
from ..core.patterns import BlockPattern
from ..core.weights import nonzeros
from ..core.workers import in_order
from ..formats.record import Record, describe_linear, read_record
from ..models.families import decoder_linears
from ..progress import Progress, silent
from . import Report


@dataclass(frozen=True)
class LinearFacts:
    """One linear of a checkpoint.

    shape: (out, in). scheme: name of the number format. ternary: whether its weights are -1, 0 or 1 times a scale.
    pattern, method: "" if the checkpoint declares none. zeros: number of zero weights. error: relative Frobenius error
    from report.json, None without one. bytes: of weight and scales, as stored.
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    ternary: bool
    pattern: str
    method: str
    layout: str
    zeros: int
    error: float | None
    bytes: int

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Inspection:
    """A whole checkpoint.

    layout, source, recipe: empty for checkpoints of other tools. verified: tensors that the conversion read back; None
    if it did not, or without report.json. bytes: of all weight files. hashed: the number of files with a recorded
    sha256; 0 if transformers saved the checkpoint again.
    """

    path: str
    model_type: str
    layout: str
    source: dict[str, Any]
    recipe: dict[str, Any]
    verified: int | None
    bytes: int
    hashed: int
    linears: tuple[LinearFacts, ...]


def inspect_checkpoint(path: Path, progress: Progress = silent) -> Inspection:
    """Read every decoder linear of the checkpoint in `path` and count its zeros.

    progress: called with ("inspect", linears done, all linears). InputError if something cannot be read.
    """
    checkpoint = Checkpoint.open(path)
    record = read_record(checkpoint.config, str(path))
    errors, verified = _from_report(path)
    names = [linear.name for linear in decoder_linears(checkpoint.config)]
    linears = []
    for number, facts in enumerate(in_order(partial(_facts, checkpoint, record, errors), names)):
        progress("inspect", number + 1, len(names))
        linears.append(facts)
    return Inspection(
        path=str(path),
        model_type=checkpoint.config["model_type"],
        layout=record.layout if record else "",
        source=record.source if record else {},
        recipe=record.recipe if record else {},
        verified=verified,
        bytes=checkpoint.bytes,
        hashed=len(record.files) + len(record.kernels) if record else 0,
        linears=tuple(linears),
    )


def _facts(checkpoint: Checkpoint, record: Record | None, errors: dict[str, float], name: str) -> LinearFacts:
    entry = record.linears.get(name) if record else None
    stored = describe_linear(checkpoint, record, name)
    return LinearFacts(
        name=name,
        shape=stored.shape,
        scheme=stored.scheme.label,
        ternary=stored.scheme.ternary,
        pattern=str(entry.pattern) if entry and entry.pattern != BlockPattern(None) else "",
        method=entry.method if entry else "",
        layout=stored.layout,
        zeros=stored.shape[0] * stored.shape[1] - nonzeros(stored.read(checkpoint)),
        error=errors.get(name),
        bytes=stored.bytes,
    )


def _from_report(path: Path) -> tuple[dict[str, float], int | None]:
    """The error of each linear, and the number of verified tensors; {} and None without a readable report.json."""
    try:
        report = Report.from_json((path / REPORT_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, None
    return {layer.name: layer.error for layer in report.layers}, report.verified
