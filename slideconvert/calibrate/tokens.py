"""The calibration tokens: random sequences of a text, checked against the model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..evaluate.text import around_documents, is_file, read_documents, sampled, token_sequences
from ..models.families import architecture_of
from ..models.load import load_tokenizer, tokenizer_settings
from ..plan.calibration import Calibration, sequence_length

POOL = 16
"""Sequences read from a data set, which may be endless, as a multiple of the samples drawn from them. A file is read to
its end, but no more of it is tokenized, or LEAST_POOL characters."""
CHARACTERS, LEAST_POOL = 8, 1 << 25
"""Characters of a token, more than there are in most texts; and those of any file that are tokenized whole."""


def calibration_tokens(calibration: Calibration, source: Checkpoint) -> Tensor:
    """Tokens [samples, length] int64. InputError for a text that is too short, or a tokenizer of another model."""
    length = sequence_length(calibration, source)
    most = None if is_file(calibration.text) else POOL * calibration.samples
    tokenizer = load_tokenizer(source)
    around = around_documents(tokenizer, tokenizer_settings(source))
    try:
        documents: Iterable[str] = read_documents(calibration.text)
        if most is None:
            characters = max(LEAST_POOL, POOL * calibration.samples * length * CHARACTERS)
            documents = sampled(documents, characters, calibration.seed)
        sequences = token_sequences(tokenizer, documents, length, most, around=around)
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
