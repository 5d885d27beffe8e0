"""Where a checkpoint's weight files are: in its folder, nowhere (a plan needs none), or fetched when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from ..errors import InputError


class Shelf(Protocol):
    """Gives weight files out for reading. Several threads may read at once."""

    @property
    def known_by(self) -> str:
        """What names, shapes and dtypes of the tensors were taken from: weights, or config.json."""

    def lend(self, file: Path) -> AbstractContextManager[FileIO]:
        """A weight file, open for unbuffered reading inside the block. OSError if it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """The files lie where they are said to be."""

    known_by: str = "weights"

    @contextmanager
    def lend(self, file: Path) -> Iterator[FileIO]:
        with file.open("rb", buffering=0) as opened:
            yield opened


@dataclass(frozen=True)
class NoWeights:
    """There are no files: config.json alone is known, which is enough for a plan."""

    known_by: str = "config.json"

    @contextmanager
    def lend(self, file: Path) -> Iterator[FileIO]:
        raise InputError(
            f"{file.parent}: only config.json is known, no weights", hint="without weights a model can only be planned"
        )
        yield  # what makes this a generator
