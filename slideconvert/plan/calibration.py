"""The text that calibrated methods and training run through the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

DEFAULT_TEXT = "allenai/c4:en:train"
LENGTH = 2048
"""Default number of tokens of a sequence, unless the model takes fewer."""
LEAST = {"samples": 2, "length": 2, "seed": 0}
"""The whole numbers among the fields, and the least that each may be."""


@dataclass(frozen=True)
class Calibration:
    """Which sequences of tokens run through the layers.

    text: a .txt, .jsonl or .parquet file, or a data set NAME[:CONFIG]:SPLIT. samples: number of sequences of `length`
    tokens, drawn with `seed` from all sequences of a file (of a data set from the first tokens.POOL times as many).
    length None: LENGTH, or the longest that the model takes.
    """

    text: str = DEFAULT_TEXT
    samples: int = 128
    length: int | None = None
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """The fields of a recipe's calibration."""
        return {name: value for name, value in vars(self).items() if value is not None}


def parse_calibration(fields: Mapping[str, str], where: str) -> Calibration:
    """The fields of a recipe's calibration, all strings, to a checked Calibration; InputError otherwise."""
    parsed: dict[str, Any] = dict(fields)
    for name, least in LEAST.items():
        if name not in fields:
            continue
        try:
            parsed[name] = int(fields[name])
        except ValueError as error:
            raise InputError(f"{where}: {name} is '{fields[name]}', a whole number was expected") from error
        if parsed[name] < least:
            raise InputError(f"{where}: {name} is {fields[name]}, at least {least} is needed")
    return Calibration(**parsed)
