"""The time of a conversion by stage, from conversions of smaller models that were timed.

A trial converts a model of few layers and random weights, narrower and with shorter sequences than the planned one, but
with the same recipe. Its vocabulary is smaller by as much as its layers, so that the head keeps its share. The stages
have the names that a conversion reports, and they grow in two ways:

    by tensors    a + b · weights                                              check, convert, verify, finish
    by layers     layers · (c · w + d · w^1.5 + e · w · sequences · length)    calibrate, train, compare …

with w the weights of one layer: what solvers do grows with the cube of the width, what a token costs with its square.
Attention, which also grows with the length, keeps its share if sequences are shorter by as much as layers are narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import factorial, gcd
from typing import TYPE_CHECKING, Any

from ..checkpoint.writer import divided
from .calibration import GENERATED_AT_ONCE, sequence_length

if TYPE_CHECKING:
    from .plan import Plan

PLAN, TEXT, CONVERT, GENERATE, CALIBRATE = "plan", "text", "convert", "generate", "calibrate"
TARGETS, TRAIN = "targets", "train"
SMOOTH = "smooth"
"""The stage that has the same few sequences, whatever the number of samples."""
BY_TENSORS = ("check", CONVERT, "verify", "finish")
DIVIDED = (GENERATE, CALIBRATE, TARGETS, TRAIN)
"""The stages whose sequences several ranks have among them."""


@dataclass(frozen=True)
class Size:
    """What the time depends on. weights: of all decoder linears. samples, generated: calibration sequences of the text,
    and those that the model generates; solved: those of both that layers are solved and trained with. length: tokens of
    each."""

    layers: int
    weights: int
    samples: int = 0
    generated: int = 0
    solved: int = 0
    length: int = 1

    @classmethod
    def of(cls, plan: Plan) -> Size:
        layers = len({linear.linear.layer for linear in plan.linears})
        if not plan.calibrated:
            return cls(layers, plan.weights)
        calibration = plan.recipe.calibration
        length = sequence_length(calibration, plan.source)
        solved = calibration.samples + plan.layer_generated
        return cls(layers, plan.weights, calibration.samples, plan.generated, solved, length)

    def sequences(self, stage: str) -> int:
        """The sequences of a stage by layers, or what they are a share of."""
        every = self.samples + self.generated
        return {CALIBRATE: self.solved, GENERATE: self.generated, TARGETS: every, TRAIN: every}.get(stage, self.samples)

    @property
    def of_layer(self) -> float:
        """The weights of one layer."""
        return self.weights / self.layers


@dataclass(frozen=True)
class Trial:
    """A timed conversion. stages: seconds by name. layer: seconds of calibration between the ends of the first and the
    last layer, for each of them; None without calibration."""

    size: Size
    stages: Mapping[str, float]
    layer: float | None = None

    def seconds(self, stage: str) -> float:
        """The time of a stage for each layer."""
        if stage == CALIBRATE and self.layer is not None:
            return self.layer
        return self.stages.get(stage, 0.0) / self.size.layers


@dataclass(frozen=True)
class Trials:
    """narrow, few: the same sequences through two models, the first narrower. many: more sequences through the second;
    None without calibration."""

    narrow: Trial
    few: Trial
    many: Trial | None = None


@dataclass(frozen=True)
class Shares:
    """What is left of the work for the busiest of several ranks. files: of the bytes of all weight files. sequences: of
    what runs through the layers. block_batches, end_batches: of what is trained in batches."""

    files: float = 1.0
    sequences: float = 1.0
    block_batches: float = 1.0
    end_batches: float = 1.0

    @classmethod
    def of(cls, plan: Plan, ranks: int) -> Shares:
        sizes = [sum(unit.bytes for shard in part for unit in shard.units) for part in divided(plan.shards, ranks)]
        recovery = plan.recovery
        batches = (recovery.block_batch, recovery.end_batch) if recovery else ()
        shares = [busiest(batch, ranks) / batch for batch in batches] or [1 / ranks, 1 / ranks]
        return cls(max(sizes) / sum(sizes), 1 / ranks, *shares)

    def of_stage(self, stage: str) -> float:
        """Of the sequences of a stage by layers."""
        own = {CALIBRATE: self.block_batches, TRAIN: self.end_batches}
        return own.get(stage, self.sequences if stage in DIVIDED else 1.0)


@dataclass(frozen=True)
class Forecast:
    """The seconds of each stage of a conversion, in its order; None for those that are not estimated.

    device, ranks: where, and how many processes. probe: size of the largest trial. took: seconds of all trials.
    """

    stages: dict[str, float | None]
    device: str
    ranks: int
    planned: Size
    probe: Size
    took: float

    @property
    def seconds(self) -> float:
        """The sum of the stages that are estimated."""
        return sum(seconds for seconds in self.stages.values() if seconds is not None)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def predict(
    size: Size, trials: Trials, shares: Shares = Shares(), at_once: int = GENERATED_AT_ONCE["cpu"]
) -> dict[str, float]:
    """The seconds of each stage that the trials had, for a model of this size; nothing for PLAN and TEXT.

    shares: of the busiest rank. at_once: tokens of the sequences that the model generates together.
    """
    many, found = trials.many, {}
    for stage in (many or trials.few).stages:
        if stage in (PLAN, TEXT):
            continue
        if stage in BY_TENSORS:
            seconds = _by_tensors(stage, size, trials)
            found[stage] = seconds * shares.files if stage == CONVERT else seconds
        elif many:
            fixed, sequences = _of_a_layer(stage, size, trials.narrow, trials.few, many)
            if stage == GENERATE:
                # Each step reads all weights once for the sequences of a round; a trial has a single round.
                rounds = -(-size.generated // max(1, at_once // size.length))
                fixed *= rounds * size.length / many.size.length
            found[stage] = size.layers * (fixed + sequences * shares.of_stage(stage))
    return found


def _by_tensors(stage: str, size: Size, trials: Trials) -> float:
    """a + b · weights, neither negative."""
    narrow, wide = (trials.narrow, trials.few)
    before, after = narrow.stages.get(stage, 0.0), wide.stages.get(stage, 0.0)
    more = wide.size.weights - narrow.size.weights
    slope = min(max(0.0, after - before) / more, after / wide.size.weights) if more else after / wide.size.weights
    return after + slope * (size.weights - wide.size.weights)


def _of_a_layer(stage: str, size: Size, narrow: Trial, few: Trial, many: Trial) -> tuple[float, float]:
    """Seconds of a layer: those that do not depend on the number of sequences, and those of all sequences."""
    if stage == SMOOTH:
        return many.seconds(stage) * size.of_layer / many.size.of_layer * size.length / many.size.length, 0.0
    fewer, more_sequences = few.size.sequences(stage), many.size.sequences(stage)
    each = max(0.0, many.seconds(stage) - few.seconds(stage)) / (more_sequences - fewer)
    wide = max(0.0, few.seconds(stage) - each * fewer)
    less, more = narrow.size.of_layer / few.size.of_layer, size.of_layer / few.size.of_layer
    shorter, longer = narrow.size.length / few.size.length, size.length / few.size.length
    small = max(0.0, narrow.seconds(stage) - each * less * shorter * narrow.size.sequences(stage))
    if stage == GENERATE:
        small /= shorter  # the time of so many fewer steps
    cubic = min(max(0.0, wide * less - small) / (less - less**1.5), wide) if less < 1 else wide
    fixed = (wide - cubic) * more + cubic * more**1.5
    return fixed, each * more * longer * size.sequences(stage)


def busiest(batch: int, ranks: int) -> float:
    """How many sequences of a batch the busiest rank has on average.

    A batch has every number modulo `batch` once, and a rank those that are equal modulo `ranks`: the greatest common
    divisor of both divides the batch evenly, and the rest is chance.
    """
    parts = gcd(batch, ranks)
    return sum(1 - _none_above(most, batch // parts, ranks // parts) ** parts for most in range(batch // parts))


def _none_above(most: int, batch: int, ranks: int) -> float:
    """The probability that no rank has more than so many: batch! · [x^batch] (Σ_(k <= most) x^k / k!)^ranks of all
    ranks^batch ways to distribute the batch."""
    terms = [1 / factorial(count) if count <= most else 0.0 for count in range(batch + 1)]
    ways = [1.0] + [0.0] * batch
    for _ in range(ranks):
        ways = [sum(ways[k] * terms[n - k] for k in range(n + 1)) for n in range(batch + 1)]
    return factorial(batch) * ways[batch] / float(ranks**batch)
