"""What a calibrated conversion is told: which text, how the result is trained, and where the work lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..core.patterns import GROUPS, MILD, SEVERE, Pattern
from ..errors import InputError, pick

DEFAULT_TEXT = "allenai/c4:en:train"
LENGTH = 2048
"""Tokens of a window unless said otherwise, or the model's longest, whichever is less."""


@dataclass(frozen=True)
class Calibration:
    """Which tokens the layers are shown.

    text: a .txt, .jsonl or .parquet file, or a data set NAME[:CONFIG]:SPLIT. samples: windows of `length` tokens,
    drawn with `seed` from all windows of a file (of the first POOL times as many of a data set). length None: 2048, or
    the model's longest.
    """

    text: str = DEFAULT_TEXT
    samples: int = 128
    length: int | None = None
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        words = {"text": self.text, "samples": self.samples, "length": self.length, "seed": self.seed}
        return {word: value for word, value in words.items() if value is not None}


KL, CROSS_ENTROPY = "kl", "ce"
"""What training end to end lowers: the divergence from the dense model's predictions, or the surprise at the text."""


@dataclass(frozen=True)
class Recovery:
    """How what is left is trained against the dense model.

    block_epochs, end_epochs: by block and end to end, over the calibration windows. block_rate, end_rate, batch,
    relative, patience, retries: as training.Schedule has them. loss: KL or CROSS_ENTROPY, end to end.
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
"""Of grouped schemes, and where whole groups went: more is to be made up for than in 8 bits, and end to end only scales
and zero points train."""


@dataclass(frozen=True)
class Preset:
    """How much time is spent for accuracy.

    severe, mild: the method for 2:4 and 2:6, and for milder patterns: ADMM finds better masks where many weights
    go, and hardly any where few do; "" if it is not for them. permute: fold channel permutations in. recovery: of
    2:L patterns in 8 bits and more. groups: the method for group patterns (GQSA). group_recovery: their recovery, and
    that of all grouped schemes.
    """

    name: str
    severe: str
    mild: str
    permute: bool = False
    recovery: Recovery = Recovery()
    groups: str = "gqsa"
    group_recovery: Recovery = GROUP_RECOVERY

    def method(self, pattern: Pattern) -> str:
        """The word of the method for a pattern."""
        found = {SEVERE: self.severe, MILD: self.mild, GROUPS: self.groups}[pattern.severity]
        if not found:
            raise InputError(
                f"preset {self.name} is GQSA's and takes whole groups, not pattern {pattern}",
                hint="use fast, balanced or quality, or --sparsity instead of the pattern",
            )
        return found


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fast", "wanda", "wanda"),
        Preset("balanced", "alps", "obs", group_recovery=replace(GROUP_RECOVERY, block_epochs=3, end_epochs=2)),
        Preset(
            "quality",
            "alps",
            "obs",
            permute=True,
            recovery=Recovery(block_epochs=16, end_epochs=8),
            group_recovery=replace(GROUP_RECOVERY, block_epochs=8, end_epochs=6),
        ),
        # GQSA's own procedure, section 4.1; batch and loss, which the paper does not tell, are EfficientQAT's.
        Preset(
            "paper",
            "",
            "",
            groups="saliency",
            group_recovery=Recovery(5, 2, 1e-5, 1e-5, batch=2, relative=False, loss=CROSS_ENTROPY),
        ),
    )
}


def parse_preset(name: str) -> Preset:
    """'balanced' -> Preset. InputError with the nearest word for an unknown one."""
    return PRESETS[pick(name, PRESETS, "preset")]


def parse_calibration(words: dict[str, str], where: str) -> Calibration:
    """The words of a recipe's calibration, all strings, to a checked Calibration; InputError otherwise."""
    numbers = {}
    for word, least in (("samples", 2), ("length", 2), ("seed", 0)):
        if word in words:
            try:
                numbers[word] = int(words[word])
            except ValueError as error:
                raise InputError(f"{where}: {word} is '{words[word]}', a whole number was expected") from error
            if numbers[word] < least:
                raise InputError(f"{where}: {word} is {words[word]}, at least {least} is needed")
    text = {"text": words["text"]} if "text" in words else {}
    return Calibration(**text, **numbers)  # type: ignore[arg-type]
