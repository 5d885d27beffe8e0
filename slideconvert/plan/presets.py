"""Presets: the method for each pattern, and how the pruned model is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.choices import ALPS, GQSA, SALIENCY, SWEEP_REFIT, WANDA
from ..errors import InputError, pick

if TYPE_CHECKING:
    from ..core.patterns import Pattern  # imports torch, and --help reads the names of the presets

KL, CROSS_ENTROPY = "kl", "ce"
"""The loss of training end to end: divergence from the dense model's predictions, or cross-entropy of the tokens."""


@dataclass(frozen=True)
class Recovery:
    """How the remaining weights are trained against the dense model.

    block_epochs, end_epochs: epochs block by block and end to end. sequences: of training end to end; if the
    calibration text has fewer, the dense model generates the others (calibrate/generate.py), at most `most_generated`
    for each of the text. layer_sequences: layers are solved and trained with so many at most, the whole text among
    them: training end to end gains from each new sequence, layers hardly do. block_rate, block_batch, end_rate,
    end_batch, relative, patience, retries: those of training.Schedule. loss: KL or CROSS_ENTROPY, end to end.
    """

    block_epochs: int = 0
    end_epochs: int = 0
    sequences: int = 0
    most_generated: int = 7
    layer_sequences: int = 512
    block_rate: float = 0.015
    block_batch: int = 4
    end_rate: float = 0.005
    end_batch: int = 4
    relative: bool = True
    patience: int = 0
    retries: int = 4
    loss: str = KL

    @property
    def trains(self) -> bool:
        return bool(self.block_epochs or self.end_epochs)

    def generated(self, samples: int) -> int:
        """The number of sequences that the dense model adds to so many calibration sequences."""
        wanted = self.sequences if self.end_epochs else min(self.sequences, self.layer_sequences)
        return max(0, min(wanted - samples, self.most_generated * samples))

    def layer_generated(self, samples: int, generated: int) -> int:
        """How many of the generated sequences layers are solved and trained with, besides so many of the text."""
        return min(generated, max(0, self.layer_sequences - samples)) if self.end_epochs else generated


GROUP_RECOVERY = Recovery(block_rate=0.02, end_rate=0.01, patience=2, retries=2)
"""For grouped schemes and group patterns: they lose more accuracy than 8 bits per channel, and training end to end
changes only scales and zero points."""


@dataclass(frozen=True)
class Preset:
    """A trade of time for accuracy.

    severe, mild: the method for 2:4 and 2:6, and for milder patterns; "" if the preset does not support 2:L patterns.
    ADMM finds better masks where many weights are pruned, and hardly better ones where few are. permute: whether to
    permute channels for a smaller pruning loss. recovery: training for 2:L patterns in schemes without groups. groups:
    the method for group patterns (GQSA). group_recovery: training for group patterns and for grouped schemes.
    """

    name: str
    severe: str
    mild: str
    permute: bool = False
    recovery: Recovery = Recovery()
    groups: str = GQSA
    group_recovery: Recovery = GROUP_RECOVERY

    def method(self, pattern: Pattern) -> str:
        """The name of the method for a pattern. InputError if the preset has none for it."""
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
        Preset(
            "balanced",
            ALPS,
            SWEEP_REFIT,
            recovery=Recovery(block_epochs=2),
            group_recovery=replace(GROUP_RECOVERY, block_epochs=3, end_epochs=2),
        ),
        Preset(
            "quality",
            ALPS,
            SWEEP_REFIT,
            permute=True,
            recovery=Recovery(block_epochs=6, end_epochs=6, sequences=2048, block_rate=0.008, end_batch=8),
            group_recovery=replace(GROUP_RECOVERY, block_epochs=8, end_epochs=6, sequences=2048),
        ),
        # The procedure of the GQSA paper, section 4.1; the paper omits batch and loss, so they are EfficientQAT's.
        Preset(
            "paper",
            "",
            "",
            groups=SALIENCY,
            group_recovery=Recovery(
                5,
                2,
                block_rate=1e-5,
                block_batch=2,
                end_rate=1e-5,
                end_batch=2,
                relative=False,
                retries=0,
                loss=CROSS_ENTROPY,
            ),
        ),
    )
}


def parse_preset(name: str) -> Preset:
    """'balanced' -> Preset. InputError with the nearest name for an unknown one."""
    return PRESETS[pick(name, PRESETS, "preset")]
