"""The report of a conversion: one entry per linear, totals, and the result of the verification.

A report contains nothing that differs between two runs of the same conversion (no times, no paths), so a resumed run
writes the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__
from ..checkpoint.json_text import parse_json
from ..core.patterns import parse_pattern


@dataclass(frozen=True)
class LayerReport:
    """One decoder linear.

    name: module name. layer: number of its decoder layer. kind: last part of the name.
    shape: (out, in). scheme, pattern, method: of the output; method "" if the conversion did not prune this linear.
    kept: whether the linear is a byte-for-byte copy.
    zeros: number of zero weights in the output. pruned: number of non-zero weights that pruning set to zero.
    error: relative Frobenius error ||W - W'|| / ||W||, where W is the source weight and W' the weight of the output.
    prune_error: the same error after pruning alone.
    bytes_before, bytes_after: of weight and scales, as stored.
    slid_columns: K' in the slide layout, else 0.
    output_error: relative error ||X (W' - W)ᵀ|| / ||X Wᵀ|| of the linear's output, X its inputs in the written model on
    held-out calibration sequences; None without calibration and for kept linears.
    activation_error: relative change of the linear's output on calibration tokens when its inputs are quantized to 8
    bits per token; None without calibration, and where inputs stay floats.
    notes: sentences on anything degraded or unusual.
    legal_groups: the number of blocks that had enough zeros in the source; None for weights that are not ternary.
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
    activation_error: float | None = None
    notes: tuple[str, ...] = ()
    legal_groups: int | None = None

    @property
    def weights(self) -> int:
        """The number of weights, out × in."""
        return math.prod(self.shape)

    @property
    def groups(self) -> int:
        """The number of blocks (of a group pattern: groups) in all rows."""
        return self.shape[0] * parse_pattern(self.pattern).units(self.shape[1])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerReport:
        """From the fields of report.json. KeyError or TypeError for other fields."""
        if not isinstance(values["name"], str) or type(values["error"]) not in (int, float):
            raise TypeError(f"{values['name']!r} and {values['error']!r} are no name and error of a linear")
        return cls(**{**values, "shape": tuple(values["shape"]), "notes": tuple(values["notes"])})


@dataclass(frozen=True)
class Training:
    """One training of the remaining weights against the dense model.

    part: "layer 3" or "end to end". losses: on held-out sequences, before training and after each epoch; None if not
    finite. Loss of a layer: squared error of its output over the square of what the layer adds to its input, both
    relative to the token's output of the dense layer (recover/block.py). Loss end to end: Kullback-Leibler divergence
    per token in nats; with preset paper, cross-entropy of the next token. best: the kept epoch, 0 if training did not
    help and was undone. skipped: the number of steps that were skipped because loss or gradient was not finite.
    restarts: how often training restarted with half of the rate, because an epoch had lowered nothing; the losses are
    those of the last run.
    """

    part: str
    losses: tuple[float | None, ...]
    best: int
    skipped: int = 0
    restarts: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Training:
        """From the fields of report.json. KeyError or TypeError for other fields."""
        return cls(**{**values, "losses": tuple(values["losses"])})

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on training that did not help or skipped steps, equal ones for all parts alike."""
        found = []
        if not self.best:
            found.append("Training did not lower the held-out loss and was undone.")
        if self.skipped:
            found.append(f"Training skipped {self.skipped} steps whose loss was not finite.")
        return tuple(found)


@dataclass(frozen=True)
class HeldOut:
    """The output against the source on calibration sequences that solvers and training never fit to, and only choose
    the number of refit steps and the best epoch by; activations as floats.

    sequences, length: how many, and tokens of each. kl: mean KL divergence of source to output per token, in nats, and
    its standard error over sequences, None for one sequence. source_perplexity, output_perplexity: on these sequences.
    layer_errors: ||H' - H|| / ||H|| of the hidden states behind each decoder layer, H in the source and H' in the
    output, which contain the errors of all layers before.
    """

    sequences: int
    length: int
    kl: float
    kl_stderr: float | None
    source_perplexity: float
    output_perplexity: float
    layer_errors: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeldOut:
        """From the fields of report.json. KeyError or TypeError for other fields."""
        found = cls(**{**values, "layer_errors": tuple(values["layer_errors"])})
        numbers = [*found.layer_errors, found.kl, found.source_perplexity, found.output_perplexity]
        if bad := [value for value in numbers if type(value) not in (int, float)]:
            raise TypeError(f"{bad[0]!r} is no measured number")
        return found

    @property
    def ratio(self) -> float:
        """Perplexity of the output over that of the source."""
        return self.output_perplexity / self.source_perplexity


@dataclass(frozen=True)
class Totals:
    """Sums over the decoder linears, and the bytes of all weight files.

    weights, zeros, pruned: counts. linear_bytes_before, linear_bytes_after: of weights and scales, as stored.
    """

    weights: int
    zeros: int
    pruned: int
    linear_bytes_before: int
    linear_bytes_after: int
    file_bytes_before: int
    file_bytes_after: int


@dataclass(frozen=True)
class Report:
    """A whole conversion.

    source, revision: the Hub id or folder of the source, and its commit (None for a folder). recipe: as fields of a
    recipe. layers: one entry per decoder linear. files: sha256 by file name, of weights, index and tokenizer. verified:
    the number of tensors that were read back and checked; None if they were not. notes: sentences that a user must
    know. perplexity: "source" and "output" to values, if this run measured them; perplexity_stderr: their standard
    errors, None for one sequence; perplexity_protocol: how. comparison: of the output with the source on that text, by
    name: the fields that docs/evaluation.md describes, the number of tokens, and top, how many tokens of a
    distribution were compared one by one. held_out: the output against the source on held-out calibration text; None
    without calibration. training: one entry per trained part. source_card: license and languages from the model card
    of the source.
    """

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
    perplexity_stderr: dict[str, float | None] = field(default_factory=dict)
    perplexity_protocol: str = ""
    comparison: dict[str, float | None] = field(default_factory=dict)
    held_out: HeldOut | None = None
    training: tuple[Training, ...] = ()
    source_card: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of report.json."""
        return json.dumps({"tool": f"slideconvert {__version__}", **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of `to_json`. KeyError, TypeError or ValueError for any other text."""
        values = parse_json(text)
        if not isinstance(values, dict):
            raise TypeError(f"a report is a JSON object, not {type(values).__name__}")
        values.pop("tool")
        layers = tuple(LayerReport.from_dict(layer) for layer in values.pop("layers"))
        totals, notes = Totals(**values.pop("totals")), tuple(values.pop("notes"))
        training = tuple(Training.from_dict(part) for part in values.pop("training"))
        held = values.pop("held_out")
        if type(values["verified"]) not in (int, type(None)):
            raise TypeError(f"{values['verified']!r} is no number of tensors")
        measured = [*values["comparison"].values(), *values["perplexity_stderr"].values()]
        if bad := [value for value in measured if type(value) not in (int, float, type(None))]:
            raise TypeError(f"{bad[0]!r} is no measured number")
        held_out = None if held is None else HeldOut.from_dict(held)
        return cls(**values, layers=layers, totals=totals, notes=notes, training=training, held_out=held_out)


def totals(layers: Sequence[LayerReport], file_bytes_before: int, file_bytes_after: int) -> Totals:
    """The sums over all linears, with the bytes of all weight files before and after."""
    return Totals(
        weights=sum(layer.weights for layer in layers),
        zeros=sum(layer.zeros for layer in layers),
        pruned=sum(layer.pruned for layer in layers),
        linear_bytes_before=sum(layer.bytes_before for layer in layers),
        linear_bytes_after=sum(layer.bytes_after for layer in layers),
        file_bytes_before=file_bytes_before,
        file_bytes_after=file_bytes_after,
    )
