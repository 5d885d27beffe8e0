"""Text for evaluation and calibration: documents from files or data sets, cut into sequences of tokens.

Each document is tokenized without special tokens, between the tokenizer's begin and end tokens if it has them and its
own settings do not leave them out. The tokens of all documents are concatenated and cut into sequences of a fixed
length; the rest is dropped. There is no padding.

Memory does not grow with the file: text is read and tokenized in pieces.
"""

from __future__ import annotations

import codecs
import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.json_text import parse_json
from ..errors import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMN = "text"
Around = tuple[list[int], list[int]]
"""The tokens before and after each document."""
TOGETHER = 64
"""Documents that are tokenized in one call, on all cores, if they are short."""
PIECE = 1 << 18
"""Characters that are tokenized in one call: a tokenizer takes hundreds of bytes for each."""
DOCUMENT = 1 << 24
"""Characters of one document of a .txt file; a larger file holds several."""
LINE = 1 << 28
"""Characters of a line of a .jsonl file, at most."""


def read_documents(source: str) -> Iterator[str]:
    """The documents of a .txt (one document, one for each DOCUMENT characters of a large one), .jsonl or .parquet file
    (column "text"), or of a data set of the Hub.

    A data set is NAME, NAME:SPLIT or NAME:CONFIG:SPLIT; the split is "test" if not given.
    InputError for a file that is missing, of another kind or without text, and for a data set that cannot be read.
    """
    return _from_file(Path(source)) if is_file(source) else _from_dataset(source)


def is_file(source: str) -> bool:
    """Whether `source` names a file and not a data set."""
    path = Path(source)
    return path.suffix.lower() in SUFFIXES or path.exists()


def _from_file(path: Path) -> Iterator[str]:
    if path.is_dir():
        raise InputError(f"text {path}: a folder", hint=f"give one of its {', '.join(SUFFIXES)} files")
    if not path.is_file():
        raise InputError(f"text {path}: no such file", hint=f"give a {', '.join(SUFFIXES)} file or a data set's name")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        with _text_errors(path), path.open(encoding="utf-8-sig") as file:
            rest = ""
            while text := file.read(DOCUMENT + 1 - len(rest)):
                text = rest + text
                end = _end(text, 0, DOCUMENT)
                yield text[:end]
                rest = text[end:]
            if rest:
                yield rest
    elif suffix == ".jsonl":
        yield from _from_lines(path)
    elif suffix == ".parquet":
        yield from _from_parquet(path)
    else:
        raise InputError(
            f"text {path}: a file of kind '{suffix}'",
            hint=f'give {", ".join(SUFFIXES)}: .jsonl has one {{"{COLUMN}": "…"}} in each line, unpacked',
        )


def _from_lines(path: Path) -> Iterator[str]:
    """One line is in memory at a time. Lines end at \\n alone: JSON strings may contain other line separators."""
    with _text_errors(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE), ""), 1):
            if len(line) == LINE:
                raise InputError(
                    f"{path}, line {number}: longer than {LINE} characters", hint="write one document in each line"
                )
            if line.strip():
                yield _text_of_line(line, f"{path}, line {number}")


def _from_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if names.count(COLUMN) != 1:
            found = f"{names.count(COLUMN)} columns" if COLUMN in names else "no column"
            raise InputError(f"{path}: {found} '{COLUMN}'", hint=f"its columns are {names}")
        kind = file.schema_arrow.field(COLUMN).type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise InputError(f"{path}: column '{COLUMN}' contains {kind}", hint="it must contain strings")
        for batch in file.iter_batches(TOGETHER, columns=[COLUMN]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # damaged pages, and text that is not UTF-8
        raise InputError(f"{path}: not a readable parquet file ({error})") from error


def _from_dataset(name: str) -> Iterator[str]:
    import datasets

    parts = name.split(":")
    config, split = (parts[1] if len(parts) > 2 else None), (parts[-1] if len(parts) > 1 else "test")
    try:
        rows = datasets.load_dataset(parts[0], config, split=split, streaming=True)
        for row in rows:
            if COLUMN not in row:
                raise InputError(f"data set {name}: no column '{COLUMN}'", hint=f"its columns are {sorted(row)}")
            if not isinstance(row[COLUMN], str | None):
                raise InputError(
                    f"data set {name}: column '{COLUMN}' contains {type(row[COLUMN]).__name__}",
                    hint="it must contain strings",
                )
            if row[COLUMN]:
                yield row[COLUMN]
    except InputError:
        raise
    except Exception as error:  # of any kind: the loader runs the readers of many formats on what a server sends
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"  # which says little alone: KeyError: 'id'
        raise InputError(
            f"data set {name} cannot be read: {reason}", hint=f"pass a local {', '.join(SUFFIXES)} file instead"
        ) from error


@contextmanager
def _text_errors(path: Path) -> Iterator[None]:
    """InputError for a file that is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        with path.open("rb") as file:
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        what = "UTF-16 text" if marked else f"not UTF-8 text ({error})"
        raise InputError(f"{path}: {what}", hint="save it as UTF-8") from error


def _text_of_line(line: str, where: str) -> str:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(COLUMN), str):
        raise InputError(f'{where}: an object with a "{COLUMN}" string was expected')
    return str(row[COLUMN])


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
    """Up to `most` pieces of documents together, with about PIECE characters at most, and whether each is the first and
    the last of its document."""
    batch: list[tuple[str, bool, bool]] = []
    size = 0
    for document in documents:
        start, end = 0, -1
        while end < len(document):
            end = _end(document, start, PIECE)
            batch.append((document[start:end], start == 0, end == len(document)))
            start, size = end, size + end - start
            if len(batch) == most or size >= PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _end(text: str, start: int, most: int) -> int:
    """Where the piece from `start` ends: with the text, or at a line's end, or else before a space, within `most`
    characters."""
    limit, half = start + most, start + most // 2
    if len(text) <= limit:
        return len(text)
    return text.rfind("\n", half, limit) + 1 or max(text.rfind(" ", half, limit), 0) or limit
