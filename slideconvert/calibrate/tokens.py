"""The calibration tokens: random sequences of a text, checked against the model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..evaluate.text import is_file, read_documents, token_sequences
from ..models.families import architecture_of
from ..models.load import load_tokenizer
from ..plan.calibration import LENGTH, Calibration

POOL = 16
"""Sequences read from a data set, which may be endless, as a multiple of the samples drawn from them."""


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


def calibration_tokens(calibration: Calibration, source: Checkpoint) -> Tensor:
    """Tokens [samples, length] int64. InputError for a text that is too short, or a tokenizer of another model."""
    length = sequence_length(calibration, source)
    most = None if is_file(calibration.text) else POOL * calibration.samples
    tokenizer = load_tokenizer(source)
    try:
        sequences = token_sequences(tokenizer, read_documents(calibration.text), length, most)
    except InputError as error:
        raise InputError(f"calibration text {calibration.text}: {error.what}", hint=error.hint) from error
    if len(sequences) < calibration.samples:
        raise InputError(
            f"calibration text {calibration.text}: {len(sequences)} sequences of {length} tokens, "
            f"{calibration.samples} are needed",
            hint=f"use more text, --samples {len(sequences)}, or a shorter --length",
        )
    rows = source.spec(f"{architecture_of(source.config).embedding}.weight").shape[0]
    if int(sequences.max()) >= rows:
        raise InputError(
            f"{source.path}: the tokenizer returns token {int(sequences.max())}, but the embedding has {rows} rows",
            hint="tokenizer and weights do not belong together: take both from the same model",
        )
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(calibration.seed))
    return sequences[order[: calibration.samples]]
