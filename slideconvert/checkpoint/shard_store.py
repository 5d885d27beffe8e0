"""Access to the weight files of a checkpoint: in its folder, absent (a plan needs none), or fetched on first read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from ..errors import InputError


class ShardStore(Protocol):
    """Opens weight files for reading, also from several threads at once."""

    @property
    def known_by(self) -> str:
        """The source of names, shapes and dtypes of the tensors: "weights" or "config.json"."""

    @property
    def fetched(self) -> int:
        """Bytes fetched so far to open files."""

    @property
    def disk_use(self) -> tuple[Path, int] | None:
        """The folder that receives fetched files, and the most bytes in it; None if nothing is fetched."""

    def identity(self, file: Path) -> list[object]:
        """What identifies the content of a file, so that a resumed run detects a changed one."""

    def open_shard(self, file: Path) -> AbstractContextManager[FileIO]:
        """A weight file, open for unbuffered reading inside the `with` block. OSError if it cannot be read."""


@dataclass(frozen=True)
class Folder:
    """The files are in the folder of the checkpoint."""

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
    """There are no weight files, only config.json, which suffices for a plan."""

    known_by: str = "config.json"
    disk_use: tuple[Path, int] | None = None
    fetched: int = 0

    def identity(self, file: Path) -> list[object]:
        raise self._refusal(file)

    def open_shard(self, file: Path) -> AbstractContextManager[FileIO]:
        raise self._refusal(file)

    def _refusal(self, file: Path) -> InputError:
        return InputError(
            f"{file.parent} contains config.json but no weights", hint="without weights a model can only be planned"
        )
