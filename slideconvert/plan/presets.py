"""Presets: which method a pattern gets, and how the pruned model is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.choices import ALPS, GQSA, OBS, SALIENCY, WANDA
from ..errors import InputError, pick

if TYPE_CHECKING:
    from ..core.patterns import Pattern  # imports torch, and --help reads the names of the presets

KL, CROSS_ENTROPY = "kl", "ce"
"""The loss of training end to end: divergence from the dense model's predictions, or cross-entropy of the text."""


@dataclass(frozen=True)
class Recovery:
    """How the remaining weights are trained against the dense model.

    block_epochs, end_epochs: epochs over the calibration sequences, block by block and end to end. block_rate,
    end_rate, batch, relative, patience, retries: those of training.Schedule. loss: KL or CROSS_ENTROPY, end to end.
    """

    block_epochs: int = 0
    end_epochs: int = 0
    block_rate: float = 0.006
    end_rate: float = 0.003
    batch: int = 16
    relative: bool = True
    patience: int = 0
    retries: int = 0
    loss: str = KL

    @property
    def trains(self) -> bool:
        return bool(self.block_epochs or self.end_epochs)


GROUP_RECOVERY = Recovery(block_rate=0.02, end_rate=0.01, batch=4, patience=2, retries=1)
"""For schemes with groups and for patterns of groups: they lose more than 8 bits do, and training end to end moves only
scales and zero points."""


@dataclass(frozen=True)
class Preset:
    """How much time is spent for accuracy.

    severe, mild: the method for 2:4 and 2:6, and for milder patterns: ADMM finds better masks where many weights are
    pruned, but hardly better ones where few are; "" for a preset that has none. permute: fold channel permutations into
    the weights. recovery: for 2:L patterns in 8 bits and more. groups: the method for patterns of groups (GQSA).
    group_recovery: their recovery, and that of all schemes with groups.
    """

    name: str
    severe: str
    mild: str
    permute: bool = False
    recovery: Recovery = Recovery()
    groups: str = GQSA
    group_recovery: Recovery = GROUP_RECOVERY

    def method(self, pattern: Pattern) -> str:
        """The name of the method for a pattern. InputError for a pattern that the preset has none for."""
        found = pattern.by_severity(severe=self.severe, mild=self.mild, groups=self.groups)
        if not found:
            raise InputError(
                f"preset {self.name} is GQSA's and prunes whole groups, not pattern {pattern}",
                hint="use fast, balanced or quality, or --sparsity instead of the pattern",
            )
        return found


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fast", WANDA, WANDA),
        Preset("balanced", ALPS, OBS, group_recovery=replace(GROUP_RECOVERY, block_epochs=3, end_epochs=2)),
        Preset(
            "quality",
            ALPS,
            OBS,
            permute=True,
            recovery=Recovery(block_epochs=16, end_epochs=8),
            group_recovery=replace(GROUP_RECOVERY, block_epochs=8, end_epochs=6),
        ),
        # GQSA's own procedure, section 4.1; batch and loss, which the paper leaves out, are EfficientQAT's.
        Preset(
            "paper",
            "",
            "",
            groups=SALIENCY,
            group_recovery=Recovery(5, 2, 1e-5, 1e-5, batch=2, relative=False, loss=CROSS_ENTROPY),
        ),
    )
}


def parse_preset(name: str) -> Preset:
    """'balanced' -> Preset. InputError with the nearest name for an unknown one."""
    return PRESETS[pick(name, PRESETS, "preset")]
