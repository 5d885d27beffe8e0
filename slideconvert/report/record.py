"""What a conversion did: one record per linear, totals, and the verdict of the verification.

A report holds nothing that differs between two runs of the same conversion (no times, no paths), so a resumed
run writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__
from ..core.patterns import parse_pattern


@dataclass(frozen=True)
class LayerReport:
    """One decoder linear.

    name: module name; layer: its decoder layer; kind: last part of the name.
    shape: (out, in). scheme, pattern, method: what was chosen; method "" when nothing was pruned here.
    kept: left alone by a rule, copied byte for byte.
    zeros: zero weights afterwards. pruned: non-zero weights that became zero by pruning.
    error: relative Frobenius error ||W - W'|| / ||W|| against the source weight, W' as served.
    prune_error: the part of it that pruning alone causes.
    bytes_before, bytes_after: of weight and scales, as stored.
    slid_columns: K' in the slide layout, else 0.
    output_error: relative error of the linear's output on the calibration tokens; None without calibration, and after
    training end to end, where nobody measured it.
    notes: anything degraded or unusual, in words; empty when all went as asked.
    legal_groups: of `groups` how many had their zeros in the source already; None where nobody counted, since only
    ternary weights have zeros to speak of.
    """

    name: str
    layer: int
    kind: str
    shape: tuple[int, int]
    scheme: str
    pattern: str
    method: str
    kept: bool
    zeros: int
    pruned: int
    error: float
    prune_error: float
    bytes_before: int
    bytes_after: int
    slid_columns: int
    output_error: float | None = None
    notes: tuple[str, ...] = ()
    legal_groups: int | None = None

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """Groups of the pattern in all rows."""
        return self.shape[0] * parse_pattern(self.pattern).units(self.shape[1])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerReport:
        return cls(**{**values, "shape": tuple(values["shape"]), "notes": tuple(values["notes"])})


@dataclass(frozen=True)
class Training:
    """One training of survivors against the dense model. part: "layer 3" or "end to end".

    losses: on held-out windows, before training and after each epoch; by layer the squared error of its output over
    that of the dense layer's change, end to end the Kullback-Leibler divergence per token in nats (the cross-entropy of
    the next token, of preset paper); None where it was not finite. best: the epoch that was kept, 0 if training did not
    help and was undone. skipped: steps left out because loss or gradient was not finite.
    """

    part: str
    losses: tuple[float | None, ...]
    best: int
    skipped: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        return cls(**{**values, "losses": tuple(values["losses"])})

    @property
    def notes(self) -> tuple[str, ...]:
        """What of it did not go as asked, in words."""
        said = []
        if not self.best:
            said.append(f"Training of {self.part} did not lower the held-out loss and was undone.")
        if self.skipped:
            said.append(f"Training of {self.part} left out {self.skipped} steps whose loss was not finite.")
        return tuple(said)


@dataclass(frozen=True)
class Totals:
    """Sums over the linears (weights, zeros, bytes) and the size of all weight files before and after."""

    weights: int
    zeros: int
    pruned: int
    linear_bytes_before: int
    linear_bytes_after: int
    file_bytes_before: int
    file_bytes_after: int


@dataclass(frozen=True)
class Report:
    """A whole conversion. `verified` is None until the output was read back and checked, then the number of
    tensors that were. `perplexity` maps "source" and "output" to values measured in this run, if any were, and
    `perplexity_protocol` says how. `training`: of preset quality, part by part. `source_card`: what the source's model
    card says of its licence and languages. `notes`: what a user must know."""

    source: str
    revision: str | None
    model_type: str
    layout: str
    recipe: dict[str, Any]
    layers: tuple[LayerReport, ...]
    totals: Totals
    files: dict[str, str] = field(default_factory=dict)
    verified: int | None = None
    notes: tuple[str, ...] = ()
    perplexity: dict[str, float] = field(default_factory=dict)
    perplexity_protocol: str = ""
    training: tuple[Training, ...] = ()
    source_card: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"tool": f"slideconvert {__version__}", **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError(f"a report is a JSON object, not {type(values).__name__}")
        values.pop("tool")
        layers = tuple(LayerReport.from_dict(layer) for layer in values.pop("layers"))
        totals, notes = Totals(**values.pop("totals")), tuple(values.pop("notes"))
        training = tuple(Training.from_dict(part) for part in values.pop("training"))
        return cls(**values, layers=layers, totals=totals, notes=notes, training=training)


def totals(layers: Sequence[LayerReport], file_bytes_before: int, file_bytes_after: int) -> Totals:
    """Add the linears up."""
    return Totals(
        weights=sum(layer.weights for layer in layers),
        zeros=sum(layer.zeros for layer in layers),
        pruned=sum(layer.pruned for layer in layers),
        linear_bytes_before=sum(layer.bytes_before for layer in layers),
        linear_bytes_after=sum(layer.bytes_after for layer in layers),
        file_bytes_before=file_bytes_before,
        file_bytes_after=file_bytes_after,
    )
