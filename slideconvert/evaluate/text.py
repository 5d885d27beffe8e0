"""Text for evaluation and calibration: documents from files or data sets, cut into sequences of tokens.

Each document is tokenized without special tokens, between the tokenizer's begin and end tokens if it has them. The
tokens of all documents are concatenated and cut into sequences of a fixed length; the rest is dropped. There is no
padding.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.json_text import parse_json
from ..errors import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMN = "text"
TOGETHER = 64
"""Documents that are tokenized in one call, on all cores."""


def read_documents(source: str) -> Iterator[str]:
    """The documents of a .txt (one document), .jsonl or .parquet file (column "text"), or of a data set of the Hub.

    A data set is NAME, NAME:SPLIT or NAME:CONFIG:SPLIT; the split is "test" if not given.
    InputError for a file that is missing, of another kind or without text, and for a data set that cannot be read.
    """
    return _from_file(Path(source)) if is_file(source) else _from_dataset(source)


def is_file(source: str) -> bool:
    """Whether `source` names a file and not a data set."""
    path = Path(source)
    return path.suffix.lower() in SUFFIXES or path.exists()


def _from_file(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise InputError(f"text {path}: no such file", hint=f"give a {', '.join(SUFFIXES)} file or a data set's name")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        with _text_errors(path):
            yield path.read_text(encoding="utf-8-sig")
    elif suffix == ".jsonl":
        yield from _from_lines(path)
    elif suffix == ".parquet":
        yield from _from_parquet(path)
    else:
        raise InputError(f"text {path}: unknown kind of file", hint=f"give one of {', '.join(SUFFIXES)}")


def _from_lines(path: Path) -> Iterator[str]:
    """One line is in memory at a time. Lines end at \\n alone: JSON strings may contain other line separators."""
    with _text_errors(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _text_of_line(line, f"{path}, line {number}")


def _from_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet
    from pyarrow import types

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if COLUMN not in file.schema_arrow.names:
            raise InputError(f"{path}: no column '{COLUMN}'", hint=f"its columns are {file.schema_arrow.names}")
        kind = file.schema_arrow.field(COLUMN).type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise InputError(f"{path}: column '{COLUMN}' contains {kind}", hint="it must contain strings")
        for batch in file.iter_batches(columns=[COLUMN]):
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
            if row[COLUMN]:
                yield row[COLUMN]
    except (OSError, ValueError, ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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


def token_sequences(tokenizer: Any, documents: Iterable[str], length: int, most: int | None = None) -> Tensor:
    """[sequences, length] int64: the first `most` sequences of the documents' tokens; None for all.

    It stops reading when it has enough tokens. InputError if they do not suffice for one sequence.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens: list[int] = []
    rest = iter(documents)
    while batch := list(islice(rest, TOGETHER if most is None else 1)):
        for document in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens += [*begin, *document, *end]
        if most is not None and len(tokens) >= most * length:
            break
    count = len(tokens) // length if most is None else min(most, len(tokens) // length)
    if not count:
        raise InputError(
            f"the text has {len(tokens)} tokens, one sequence needs {length}",
            hint="use more text or a shorter --length",
        )
    return torch.tensor(tokens[: count * length]).view(count, length)
