"""The documents of files, data sets and rows in memory: strings, and conversations through a chat template.

Memory does not grow with the file: it is read in pieces.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.json_text import parse_json
from ..errors import InputError, UnavailableError, did_you_mean
from .chat import COLUMNS, Template, parse_conversation
from .named import SUFFIXES, Documents, Text, is_file

COLUMN = "text"
KNOWN = (COLUMN, *COLUMNS)
"""The columns that are looked for, in this order."""
TOGETHER = 64
"""Rows of a .parquet file that are read at once."""
DOCUMENT = 1 << 24
"""Characters of one document of a .txt file; a larger file holds several."""
LINE = 1 << 28
"""Characters of a line of a .jsonl file, at most."""


def read_documents(source: Text, *, column: str | None = None, template: Template | None = None) -> Iterator[str]:
    """The documents of a .txt (one document, one for each DOCUMENT characters of a large one), .jsonl or .parquet file,
    of a data set of the Hub, which is streamed, or of rows in memory.

    A data set is NAME, NAME:SPLIT or NAME:CONFIG:SPLIT; the split is "test" if not given. column: of the rows, None for
    the first of KNOWN that there is. It has strings, or conversations, which `template` writes. Empty ones of data sets
    and .parquet files are left out.
    InputError for a file that is missing, of another kind or without text, for a data set that cannot be read, and for
    what the template raises. UnavailableError for a data set that the network does not deliver now.
    """
    if isinstance(source, Documents):
        found = _from_rows(source.rows, source.name, column)
    else:
        found = _from_file(Path(source), column) if is_file(source) else _from_dataset(source, column)
    for value, where in found:
        if isinstance(value, str):
            yield value
        elif (conversation := parse_conversation(value, where)).messages:
            if template is None:
                raise InputError(f"{where}: a conversation, where text was expected", hint="name a column of strings")
            yield template(conversation)


Found = Iterator[tuple[Any, str]]
"""Strings or lists of messages, and where each stands."""


def _from_file(path: Path, column: str | None) -> Found:
    if path.is_dir():
        raise InputError(f"text {path}: a folder", hint=f"give one of its {', '.join(SUFFIXES)} files")
    if not path.is_file():
        hint = f"{_nearest(path)}give a {', '.join(SUFFIXES)} file or a data set's name"
        raise InputError(f"text {path}: no such file", hint=hint)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        yield from ((text, str(path)) for text in _from_text(path))
    elif suffix == ".jsonl":
        yield from _from_lines(path, column)
    elif suffix == ".parquet":
        yield from _from_parquet(path, column)
    else:
        raise InputError(
            f"text {path}: a file of kind '{suffix}'",
            hint=f'give {", ".join(SUFFIXES)}: .jsonl has one {{"{COLUMN}": "…"}} in each line, unpacked',
        )


def _nearest(path: Path) -> str:
    """A question whether another entry of the folder is meant; "" if none is like it, or without the folder."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names, folder=path.parent)


def _from_text(path: Path) -> Iterator[str]:
    with _text_errors(path), path.open(encoding="utf-8-sig") as file:
        rest = ""
        while text := file.read(DOCUMENT + 1 - len(rest)):
            text = rest + text
            end = piece_end(text, 0, DOCUMENT)
            yield text[:end]
            rest = text[end:]
        if rest:
            yield rest


def _from_lines(path: Path, column: str | None) -> Found:
    """One line is in memory at a time. Lines end at \\n alone: JSON strings may contain other line separators."""
    with _text_errors(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE), ""), 1):
            where = f"{path}, line {number}"
            if len(line) == LINE:
                raise InputError(f"{where}: longer than {LINE} characters", hint="write one document in each line")
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f'{where}: an object such as {{"{COLUMN}": "…"}} was expected')
            if (value := _value(row, where, column)) is None:
                raise InputError(f"{where}: null instead of a text", hint="leave such lines out")
            yield value, where


def _from_parquet(path: Path, column: str | None) -> Found:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        chosen = _column(names, str(path), column)
        if names.count(chosen) != 1:
            raise InputError(f"{path}: {names.count(chosen)} columns '{chosen}'", hint=f"its columns are {names}")
        done = 0
        for batch in file.iter_batches(TOGETHER, columns=[chosen]):
            for number, value in enumerate(batch.column(0).to_pylist(), done + 1):
                where = f"{path}, row {number}"
                if _checked(value, chosen, str(path)):
                    yield value, where
            done += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # damaged pages, and text that is not UTF-8
        raise InputError(f"{path}: not a readable parquet file ({error})") from error


def _from_dataset(name: str, column: str | None) -> Found:
    import datasets

    parts = name.split(":")
    config, split = (parts[1] if len(parts) > 2 else None), (parts[-1] if len(parts) > 1 else "test")
    try:
        yield from _from_rows(datasets.load_dataset(parts[0], config, split=split, streaming=True), name, column)
    except InputError:
        raise
    except Exception as error:  # of any kind: the loader runs the readers of many formats on what a server sends
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"  # which says little alone: KeyError: 'id'
        hint = f"{_nearest(path := Path(parts[0]))}pass a local {', '.join(SUFFIXES)} file instead"
        if path.parent != Path() and path.parent.is_dir():
            raise InputError(f"text {name}: no such file, and as a data set: {reason}", hint=hint) from error
        what = f"data set {name} cannot be read: {reason}"
        if network_fails(error):
            raise UnavailableError(what, hint=f"run it again when the Hub can be reached; {hint}") from error
        raise InputError(what, hint=hint) from error


def network_fails(error: Exception) -> bool:
    """Whether `datasets` raised `error` because the network fails now, and not because HF_HUB_OFFLINE forbids it."""
    import datasets

    return isinstance(error, ConnectionError | TimeoutError) and not datasets.config.HF_HUB_OFFLINE


def _from_rows(rows: Any, name: str, column: str | None) -> Found:
    for number, row in enumerate(rows, 1):
        value = row if isinstance(row, str) else _value(row, f"data set {name}", column)
        if value:
            yield value, f"data set {name}, row {number}"


def _value(row: Any, where: str, column: str | None) -> Any:
    """The string or the list of messages of a row."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: a row is {type(row).__name__}", hint="it must be a string or a mapping of columns")
    chosen = _column(list(row), where, column)
    return _checked(row[chosen], chosen, where)


def _column(names: Sequence[str], where: str, column: str | None) -> str:
    """The column to read. InputError if it is not there, or if none is known."""
    if column is None:
        column = next((name for name in KNOWN if name in names), None)
    if column is None or column not in names:
        missing = f"'{column}'" if column else ", ".join(f"'{name}'" for name in KNOWN)
        raise InputError(
            f"{where}: no column {missing}", hint=f"its columns are {sorted(names)}: name one of them as the column"
        )
    return column


def _checked(value: Any, column: str, where: str) -> Any:
    messages = isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
    if not (messages or isinstance(value, str | None)):
        raise InputError(
            f"{where}: column '{column}' contains {type(value).__name__}", hint="it must contain strings, or messages"
        )
    return value


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


def piece_end(text: str, start: int, most: int) -> int:
    """Where the piece from `start` ends: with the text, or at a line's end, or else before a space, within `most`
    characters."""
    limit, half = start + most, start + most // 2
    if len(text) <= limit:
        return len(text)
    return text.rfind("\n", half, limit) + 1 or max(text.rfind(" ", half, limit), 0) or limit
