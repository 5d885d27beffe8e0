"""Documents as sequences of tokens.

Each document is tokenized without special tokens, between the tokenizer's begin and end tokens if it has them and its
own settings do not leave them out. Conversations have those that the chat template writes. The tokens of all documents
are concatenated and cut into sequences of a fixed length; the rest is dropped. There is no padding.

Memory does not grow with the text: it is tokenized in pieces.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .chat import Rendered
from .read import piece_end

Around = tuple[list[int], list[int]]
"""The tokens before and after each document."""
TOGETHER = 64
"""Documents that are tokenized in one call, on all cores, if they are short."""
PIECE = 1 << 18
"""Characters that are tokenized in one call: a tokenizer takes hundreds of bytes for each."""


def sampled(documents: Iterable[str], characters: int, seed: int) -> list[str]:
    """A random sample of documents with at most `characters` characters together, in their order; all if they are no
    more.

    One pass with memory for the sample: each document draws a number, and the documents with the largest go (bottom-k
    sampling, so that every document has the same chance).
    """
    random, total = Random(seed), 0
    kept: list[tuple[float, int, str]] = []
    for position, document in enumerate(documents):
        heapq.heappush(kept, (-random.random(), position, document))
        total += len(document)
        while total > characters and len(kept) > 1:
            total -= len(heapq.heappop(kept)[2])
    return [document for _, _, document in sorted(kept, key=lambda one: one[1])]


def token_sequences(
    tokenizer: Any, documents: Iterable[str], length: int, most: int | None = None, *, around: Around | None = None
) -> Tensor:
    """[sequences, length] int64: the first `most` sequences of the documents' tokens; None for all.

    around: the tokens before and after each document, by default the tokenizer's begin and end tokens. It stops reading
    when it has enough tokens. InputError if they do not suffice for one sequence.
    """
    begin, end = around or around_documents(tokenizer, {})
    tokens = array("i")
    for batch in _batches(documents, 1 if most is not None else TOGETHER):
        made = tokenizer([text for text, _, _ in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for piece, (_, first, last) in zip(made, batch, strict=True):
            tokens.extend([*(begin if first else ()), *piece, *(end if last else ())])
        if most is not None and len(tokens) >= most * length:
            break
    count = len(tokens) // length if most is None else min(most, len(tokens) // length)
    if not count:
        raise InputError(
            f"the text has {len(tokens)} tokens, one sequence needs {length}",
            hint="use more text or a shorter --length",
        )
    return torch.frombuffer(tokens, dtype=torch.int32)[: count * length].view(count, length).long()


def around_documents(tokenizer: Any, settings: Mapping[str, Any]) -> Around:
    """The tokens before and after each document: the tokenizer's begin and end tokens, unless its settings (the fields
    of tokenizer_config.json) say that it adds none."""
    named = (("add_bos_token", tokenizer.bos_token_id), ("add_eos_token", tokenizer.eos_token_id))
    begin, end = ([] if token is None or settings.get(flag) is False else [token] for flag, token in named)
    return begin, end


def _batches(documents: Iterable[str], most: int) -> Iterator[list[tuple[str, bool, bool]]]:
    """Up to `most` pieces of documents together, with about PIECE characters at most, and whether the tokens
    before and after a document stand around each."""
    batch: list[tuple[str, bool, bool]] = []
    size = 0
    for document in documents:
        bare = not isinstance(document, Rendered)
        start, end = 0, -1
        while end < len(document):
            end = piece_end(document, start, PIECE)
            batch.append((document[start:end], bare and start == 0, bare and end == len(document)))
            start, size = end, size + end - start
            if len(batch) == most or size >= PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
