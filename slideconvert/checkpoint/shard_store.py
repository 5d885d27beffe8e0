"""Where a checkpoint's weight files are: in its folder, nowhere (a plan needs none), or fetched when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from ..errors import InputError


class ShardStore(Protocol):
    """Gives weight files out for reading. Several threads may read at once."""

    @property
    def known_by(self) -> str:
        """What names, shapes and dtypes of the tensors were taken from: weights, or config.json."""

    @property
    def fetched(self) -> int:
        """Bytes that were fetched to give files out."""

    @property
    def disk_use(self) -> tuple[Path, int] | None:
        """The folder where files will be put, and the most bytes there; None if they are where they stay."""

    def identity(self, file: Path) -> list[object]:
        """By what a file is known again in a resumed run."""

    def open_shard(self, file: Path) -> AbstractContextManager[FileIO]:
        """A weight file, open for unbuffered reading inside the block. OSError if it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """The files lie where they are said to be."""

    known_by: str = "weights"
    disk_use: tuple[Path, int] | None = None
    fetched: int = 0

    def identity(self, file: Path) -> list[object]:
        return [file.stat().st_size, file.stat().st_mtime_ns]

    @contextmanager
    def open_shard(self, file: Path) -> Iterator[FileIO]:
        with file.open("rb", buffering=0) as opened:
            yield opened


@dataclass(frozen=True)
class NoWeights:
    """There are no files: config.json alone is known, which is enough for a plan."""

    known_by: str = "config.json"
    disk_use: tuple[Path, int] | None = None
    fetched: int = 0

    def identity(self, file: Path) -> list[object]:
        raise self._refusal(file)

    def open_shard(self, file: Path) -> AbstractContextManager[FileIO]:
        raise self._refusal(file)

    def _refusal(self, file: Path) -> InputError:
        return InputError(
            f"{file.parent}: only config.json is known, no weights", hint="without weights a model can only be planned"
        )
