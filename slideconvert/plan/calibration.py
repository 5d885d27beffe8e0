"""The text that calibrated methods and training run through the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.reader import Checkpoint
from ..core.precision import running_dtype
from ..errors import InputError

DEFAULT_TEXT = "allenai/c4:en:train"
LENGTH = 2048
"""Default number of tokens of a sequence, unless the model takes fewer."""
BATCH_TOKENS = {"cpu": 4096, "cuda": 8192}
"""Tokens that run through a layer at once by default, by device type."""
TRAINED_SHARE = 4
"""Training runs a TRAINED_SHARE-th of these tokens through a layer at once: its backward pass needs what they leave."""
GENERATED_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 18}
"""Tokens of the sequences that the model generates together, by device type: it reads its weights once for a token of
each of them."""
LEAST = {"samples": 2, "length": 2, "seed": 0}
"""The fields that are whole numbers, and the least value of each."""


@dataclass(frozen=True)
class Calibration:
    """The sequences of tokens that run through the layers.

    text: a .txt, .jsonl or .parquet file, or a data set NAME[:CONFIG]:SPLIT. samples: the number of sequences, which
    `seed` draws from all sequences of a file (of a large one, from those of a random sample of its documents), or from
    the first samples × tokens.POOL sequences of a data set. length:
    tokens per sequence; None for LENGTH, or for the longest that the model takes if that is less.
    """

    text: str = DEFAULT_TEXT
    samples: int = 128
    length: int | None = None
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """The calibration as fields of a recipe."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Running:
    """How calibration runs the model on a device. kind: cpu or cuda. batch_tokens: tokens at once, None for the default
    of the device. precision: an argument of precision.running_dtype."""

    kind: str = "cuda"
    batch_tokens: int | None = None
    precision: str = "auto"

    @property
    def tokens_at_once(self) -> int:
        return self.batch_tokens or BATCH_TOKENS[self.kind]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which layers run."""
        if self.kind == "cuda" and self.precision == "auto":
            return torch.bfloat16  # this machine may have no GPU to ask
        return running_dtype(self.precision, torch.device(self.kind))


ON_A_GPU = Running()


def sequence_length(calibration: Calibration, source: Checkpoint) -> int:
    """Tokens of a calibration sequence. InputError if the model has fewer positions."""
    longest = int(source.config.get("max_position_embeddings") or LENGTH)
    length = calibration.length or min(LENGTH, longest)
    if length > longest:
        raise InputError(
            f"calibration sequences have {length} tokens, but the model has {longest} positions",
            hint=f"use --length {longest} or less",
        )
    return length


def trained_at_once(batch_tokens: int, length: int) -> int:
    """Sequences of `length` tokens that training runs through a layer at once, where others run so many tokens."""
    return max(1, batch_tokens // TRAINED_SHARE // length)


def parse_calibration(fields: Mapping[str, str], where: str) -> Calibration:
    """The fields of a recipe's calibration, all strings, to a checked Calibration. InputError, which names `where`, for
    a number that is not whole or too small."""
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
