"""What names a text: a file, a data set of the Hub, or documents that a program holds. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.hub_id import valid_id
from ..errors import InputError

SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True, eq=False)
class Documents:
    """A text in memory, in place of a file's name.

    rows: strings, or what a line of a .jsonl file has (mappings, such as those of a datasets.Dataset), in any
    collection that can be read more than once; one without a length is not read to its end. name: what reports and the
    checkpoint call the text.

    >>> calibration = Documents(["A first document.", "A second one."], name="two sentences")
    """

    rows: Iterable[str | Mapping[str, Any]]
    name: str = "text in memory"

    @property
    def finite(self) -> bool:
        """Whether the rows have an end that can be waited for."""
        return isinstance(self.rows, Sized)


Text = str | Documents
"""The path of a file, the name of a data set, or documents in memory."""


def text_of(given: Any) -> Text:
    """A text as a program gives it: paths become strings. InputError for anything else, such as a bare data set."""
    if isinstance(given, Path):
        return str(given)
    if not isinstance(given, Text):
        raise InputError(
            f"{type(given).__name__} is no text", hint="a path, a data set's name, or slideconvert.Documents(rows)"
        )
    return given


def is_file(source: str) -> bool:
    """Whether `source` names a file and not a data set: one that exists, or what no data set is called, such as
    ./words, or my.jsnol without an owner."""
    path, name = Path(source), source.partition(":")[0]
    if path.suffix.lower() in SUFFIXES or path.exists() or not valid_id(name):
        return True
    return "/" not in name and Path(name).suffix[1:].isalpha()


def finite(source: Text) -> bool:
    """Whether a text is read to its end: a data set may be endless."""
    return source.finite if isinstance(source, Documents) else is_file(source)


def name_of(source: Text) -> str:
    """What messages and records call a text: a file's path, a data set's name."""
    return source.name if isinstance(source, Documents) else source
