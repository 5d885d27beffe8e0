"""What a calibrated conversion is told: which text, how the result is trained, and where the work lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError, pick
from ..patterns import Pattern

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


@dataclass(frozen=True)
class Preset:
    """How much time is spent for accuracy.

    shorter, longer: the method for 2:4 and 2:6, and for milder patterns: ADMM finds better masks where many weights
    go, and hardly any where few do. permute: fold channel permutations in. block_epochs, end_epochs: of recovery by
    block and end to end over the calibration windows.
    """

    name: str
    shorter: str
    longer: str
    permute: bool = False
    block_epochs: int = 0
    end_epochs: int = 0

    def method(self, pattern: Pattern) -> str:
        """The word of the method for a pattern."""
        return self.shorter if pattern.length is not None and pattern.length <= 6 else self.longer

    @property
    def trains(self) -> bool:
        return bool(self.block_epochs or self.end_epochs)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("fast", "wanda", "wanda"),
        Preset("balanced", "alps", "obs"),
        Preset("quality", "alps", "obs", permute=True, block_epochs=16, end_epochs=8),
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
