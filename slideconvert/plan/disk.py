"""Estimate what a conversion writes to the disk of its output, from shapes alone: the output, and what --resume and
--keep-on disk keep beside it until the output is finished."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint.disk import BESIDE
from ..core.choices import DISK
from .calibration import Running, sequence_length
from .memory import needs
from .training_memory import trained_variables

if TYPE_CHECKING:
    from .linear import LinearPlan
    from .plan import Plan

STATES = 4
"""Of a trained variable in the state of a training: its value, its best value, two moments."""
FLOAT, TOKEN = 4, 8
"""Bytes of a float32 and of an int64."""
GROUPED = 2 + 1
"""Bytes for each group: a scale in bfloat16 and a zero point."""


@dataclass(frozen=True)
class DiskUse:
    """Bytes at the peak, by purpose.

    output: the folder when it is finished. layers: results of all layers, twice if they are trained end to end; and
    generated text. training: the state after an epoch, and the one before it until that is complete. hidden: hidden
    states, with --keep-on disk.
    """

    output: int
    layers: int
    training: int
    hidden: int

    @property
    def resume(self) -> int:
        """What an interrupted run continues from, besides finished files of the output."""
        return self.layers + self.training

    @property
    def total(self) -> int:
        return self.output + self.resume + self.hidden

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def disk_use(plan: Plan, keep_on: str, how: Running) -> DiskUse:
    """The disk that a plan needs at most. keep_on: where calibration keeps hidden states (core.choices.PLACES)."""
    output = plan.bytes_after + BESIDE
    if not plan.calibrated:
        return DiskUse(output, 0, 0, 0)
    recovery, need = plan.recovery, needs(plan, how)
    results = sum(_result(linear) for linear in plan.linears if not linear.kept)
    epochs = recovery.end_epochs if recovery else 0
    state = STATES * trained_variables(plan) if epochs else 0
    return DiskUse(
        output=output,
        layers=results * (2 if epochs else 1)
        + TOKEN * plan.generated * sequence_length(plan.recipe.calibration, plan.source),
        training=state * min(epochs, 2),
        hidden=need.hidden + need.target_states if keep_on == DISK else 0,
    )


def _result(linear: LinearPlan) -> int:
    """A calibrated linear as it waits for the output: codes of a byte or bfloat16, and scales."""
    if not linear.scheme.quantized:
        return 2 * linear.weights
    rows, columns = linear.stored.shape
    scales = rows * -(-columns // linear.scheme.group) * GROUPED if linear.scheme.grouped else FLOAT * rows
    return linear.weights + scales
