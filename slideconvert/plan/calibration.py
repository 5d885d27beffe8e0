"""The text that calibrated methods and training run through the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.reader import Checkpoint
from ..core.precision import running_dtype
from ..errors import InputError
from ..texts.named import Text, is_file, name_of

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

    text: a .txt, .jsonl or .parquet file, a data set NAME[:CONFIG]:SPLIT, or documents in memory; or several of them.
    weights: how many sequences come from each of several, relative to the others; None for equally many. column: of
    their rows, None for the first of texts.read.KNOWN. samples: the number of sequences, which
    `seed` draws from all sequences of a file (of a large one, from those of a random sample of its documents), or from
    the first samples × tokens.POOL sequences of a data set. length:
    tokens per sequence; None for LENGTH, or for the longest that the model takes if that is less.
    """

    text: Text | tuple[Text, ...] = DEFAULT_TEXT
    samples: int = 128
    length: int | None = None
    seed: int = 0
    weights: tuple[float, ...] | None = None
    column: str | None = None

    @property
    def texts(self) -> tuple[Text, ...]:
        """All texts, one or several."""
        return self.text if isinstance(self.text, tuple) else (self.text,)

    def shares(self) -> list[int]:
        """How many of the samples come from each text: by weight, rounded down, the rest to the largest remainders."""
        weights = self.weights or (1.0,) * len(self.texts)
        exact = [self.samples * weight / sum(weights) for weight in weights]
        shares = [int(share) for share in exact]
        rest = sorted(range(len(exact)), key=lambda at: shares[at] - exact[at])
        for at in rest[: self.samples - sum(shares)]:
            shares[at] += 1
        return shares

    def describe_text(self) -> str:
        """The texts by name, for people, several with their numbers of sequences."""
        if len(self.texts) == 1:
            return name_of(self.texts[0])
        return ", ".join(f"{name_of(text)} ({share})" for text, share in zip(self.texts, self.shares(), strict=True))

    def describe(self) -> dict[str, Any]:
        """The calibration as fields of a recipe."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        names = [name_of(text) for text in self.texts]
        return (
            found
            | {"text": names if isinstance(self.text, tuple) else names[0]}
            | ({"weights": list(self.weights)} if self.weights else {})
        )


FIELDS = tuple(one.name for one in fields(Calibration))


def without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe as checkpoints publish them: files of calibration text by their names alone. Data sets and
    texts in memory keep their names, and fields that no recipe has (of a foreign record) stay as they are."""
    calibration = recipe.get("calibration")
    if not isinstance(calibration, Mapping) or "text" not in calibration:
        return dict(recipe)
    text = calibration["text"]
    names = [_file_name(one) for one in text] if isinstance(text, list) else _file_name(text)
    return {**recipe, "calibration": {**calibration, "text": names}}


def _file_name(text: Any) -> Any:
    return Path(text).name if isinstance(text, str) and is_file(text) else text


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


def parse_calibration(fields: Mapping[str, Any], where: str) -> Calibration:
    """The fields of a recipe's calibration to a checked Calibration: all are strings, texts may be a list of them, or
    documents in memory.

    InputError, which names `where`, for a number that is not whole or too small, and for weights that are none.
    """
    parsed: dict[str, Any] = dict(fields)
    if isinstance(fields.get("text"), Sequence) and not isinstance(fields["text"], str):
        texts = tuple(fields["text"])
        if not texts or not all(isinstance(text, Text) for text in texts):
            raise InputError(f"{where}: text is {texts}", hint="name a text, or several as a list")
        parsed["text"] = texts if len(texts) > 1 else texts[0]
    if "weights" in fields:
        parsed["weights"] = _weights(fields["weights"], where)
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


def _weights(given: str | Sequence[str], where: str) -> tuple[float, ...]:
    words = given.split(",") if isinstance(given, str) else given
    try:
        weights = tuple(float(word) for word in words)
    except ValueError as error:
        raise InputError(f"{where}: weights are '{given}'", hint="numbers, such as 2,1") from error
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"{where}: weights are '{given}'", hint="each must be positive")
    return weights


def check_mixture(calibration: Calibration) -> None:
    """InputError for weights, a column or a number of samples that do not suit the texts."""
    texts, weights = calibration.texts, calibration.weights
    if weights and len(weights) != len(texts):
        raise InputError(
            f"{len(weights)} weights for {len(texts)} calibration texts",
            hint="give one for each text, in their order" if len(texts) > 1 else "weights are for several texts",
        )
    if calibration.column and all(isinstance(text, str) and text.lower().endswith(".txt") for text in texts):
        raise InputError("--column has no effect: .txt files have none", hint="omit it")
    if 0 in calibration.shares():
        raise InputError(
            f"{calibration.samples} samples of {len(texts)} texts: one of them gives none",
            hint="use more samples, or other weights",
        )
