"""The calibration tokens: random sequences of one or several texts, checked against the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint.reader import Checkpoint
from ..errors import InputError
from ..models.families import architecture_of
from ..models.load import load_tokenizer, tokenizer_settings
from ..plan.calibration import Calibration, sequence_length
from ..texts.chat import template_of
from ..texts.named import finite, name_of
from ..texts.read import read_documents
from ..texts.tokens import around_documents, sampled, token_sequences

POOL = 16
"""Sequences read from a data set, which may be endless, as a multiple of the samples drawn from them. A file is read to
its end, but no more of it is tokenized, or LEAST_POOL characters."""
CHARACTERS, LEAST_POOL = 8, 1 << 25
"""Characters of a token, more than there are in most texts; and those of any file that are tokenized whole."""


def calibration_tokens(calibration: Calibration, source: Checkpoint) -> Tensor:
    """Tokens [samples, length] int64, those of several texts in random order.

    InputError for a text that is too short, a tokenizer of another model, and conversations without a chat template.
    """
    texts = calibration.texts
    if len(texts) == 1:
        return _tokens_of(calibration, source)
    parts = [
        _tokens_of(replace(calibration, text=text, weights=None, samples=share), source)
        for text, share in zip(texts, calibration.shares(), strict=True)
    ]
    return _shuffled(torch.cat(parts), calibration.seed)


def _tokens_of(calibration: Calibration, source: Checkpoint) -> Tensor:
    """Tokens [samples, length] int64 of the only text of a calibration."""
    (text,), length = calibration.texts, sequence_length(calibration, source)
    most = None if finite(text) else POOL * calibration.samples
    tokenizer = load_tokenizer(source)
    around = around_documents(tokenizer, tokenizer_settings(source))
    template = template_of(tokenizer, str(source.path))
    try:
        documents: Iterable[str] = read_documents(text, column=calibration.column, template=template)
        if most is None:
            characters = max(LEAST_POOL, POOL * calibration.samples * length * CHARACTERS)
            documents = sampled(documents, characters, calibration.seed)
        sequences = token_sequences(tokenizer, documents, length, most, around=around)
    except InputError as error:
        where = "" if name_of(text) in error.what else f" {name_of(text)}"
        raise type(error)(f"calibration text{where}: {error.what}", hint=error.hint) from error
    if len(sequences) < calibration.samples:
        raise InputError(
            f"calibration text {name_of(text)}: {len(sequences)} sequences of {length} tokens, "
            f"{calibration.samples} are needed",
            hint=f"use more text, --samples {len(sequences)}, or a shorter --length",
        )
    rows = source.spec(f"{architecture_of(source.config).embedding}.weight").shape[0]
    if int(sequences.max()) >= rows:
        raise InputError(
            f"{source.path}: the tokenizer returns token {int(sequences.max())}, but the embedding has {rows} rows",
            hint="tokenizer and weights do not belong together: take both from the same model",
        )
    return _shuffled(sequences, calibration.seed)[: calibration.samples]


def _shuffled(sequences: Tensor, seed: int) -> Tensor:
    return sequences[torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))]
