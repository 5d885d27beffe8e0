"""Write shards so that a resumed run produces the same bytes after an interruption at any point.

The writer writes the header of a shard, then its tensors in the planned order, unit by unit: a unit is a decoder layer,
or the tensors outside the layers. After each unit it appends a line to the journal with the shard's length and sha256
so far. A resumed run accepts a unit only if the bytes on disk have that hash, truncates the shard after the last
accepted unit and continues. So even a power failure costs only the units that the hash does not confirm.

Several ranks write shards of their own, each with a journal of its own. A shard's lines depend on no other shard, so a
run with another number of ranks continues them: the first rank gathers all lines before the others begin.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .container import TensorSpec, header_bytes
from .staging import JOURNAL, JOURNALS, write_file, writing

CHUNK = 1 << 24


@dataclass(frozen=True)
class Unit:
    """Tensors that are written together, in this order."""

    name: str
    tensors: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        return sum(spec.bytes for spec in self.tensors)


@dataclass(frozen=True)
class Shard:
    """A weight file and its units, in order."""

    file: str
    units: tuple[Unit, ...]

    @property
    def tensors(self) -> list[TensorSpec]:
        return [spec for unit in self.units for spec in unit.tensors]


@dataclass
class _Held:
    """What the journal tells of a shard: a line for each unit, and the hash of its bytes up to the last one."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)


class WeightWriter:
    """Writes and hashes shards in a folder, and continues each after the last valid unit of the journal.

    rank: of this process. beside: the shards that other ranks write, whose writers are made after that of the first.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], rank: int = 0, beside: Sequence[Shard] = ()) -> None:
        self.folder = folder
        self._shards = shards
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._held: dict[str, _Held] = {}
        self._replay(rank, beside)
        self._todo = deque(
            (shard, unit) for shard in shards for unit in shard.units[len(self._held[shard.file].lines) :]
        )
        # Stays open, so that no line gets into a folder that replaces this one.
        self._lines = (folder / journal_name(rank)).open("a", encoding="utf-8")

    @property
    def units(self) -> list[Unit]:
        """All units of its shards."""
        return [unit for shard in self._shards for unit in shard.units]

    @property
    def remaining(self) -> list[Unit]:
        """The units still to be written."""
        return [unit for _, unit in self._todo]

    def write(self, unit: Unit, tensors: Callable[[TensorSpec], Iterable[Tensor]], note: dict[str, Any]) -> None:
        """Write the next unit. tensors: returns the contents of a tensor, in one or several consecutive pieces.

        ValueError for a unit out of order or contents of another size, OutputError if the disk is full.
        """
        shard, expected = self._todo[0]
        if unit != expected:
            raise ValueError(f"unit {unit.name} is out of order: {expected.name} is next")
        with writing(self.folder):
            if self._file is None:
                self._open(shard)
            for spec in unit.tensors:
                size = 0
                for piece in tensors(spec):
                    data = piece.contiguous().flatten().view(torch.uint8).numpy()
                    size += data.nbytes
                    self._put(data.data)
                if size != spec.bytes:
                    raise ValueError(f"{spec.name}: {size} bytes were given, {spec.bytes} were planned")
            self._journal(shard, unit, note)
            if unit == shard.units[-1]:
                self._end()

    def close(self) -> None:
        """Close the journal and the current shard, keeping their contents. OutputError if the disk is full."""
        with writing(self.folder), closing(self._lines):
            self._close_shard()

    def _close_shard(self) -> None:
        file, self._file = self._file, None
        if file:
            file.close()

    def _put(self, data: memoryview | bytes) -> None:
        assert self._file is not None
        self._hash.update(data)
        self._file.write(data)

    def _open(self, shard: Shard) -> None:
        """Begin a shard, or go on after its accepted units."""
        held = self._held[shard.file]
        self._file = (self.folder / shard.file).open("r+b" if held.lines else "wb")
        self._hash = held.digest.copy()
        if held.lines:
            self._file.seek(held.lines[-1]["end"])
        else:
            self._put(header_bytes(shard.tensors))

    def _end(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _journal(self, shard: Shard, unit: Unit, note: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.flush()  # the bytes that the journal lists must have left this process
        line = {"unit": unit.name, "file": shard.file, "end": self._file.tell()}
        line |= {"sha256": self._hash.hexdigest(), "note": note}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self._held[shard.file].lines.append(line)
        self._todo.popleft()

    def _replay(self, rank: int, beside: Sequence[Shard]) -> None:
        """Accept the units of an interrupted run whose bytes are complete, and drop everything after them. The first
        rank passes on the lines about the shards of others."""
        found = _gathered(self.folder) if rank == 0 else _whole_lines(self.folder / JOURNAL)
        for shard in self._shards:
            listed = [found.get((shard.file, unit.name)) for unit in shard.units]
            self._held[shard.file] = self._trust(shard, list(takewhile(bool, listed)))
        if rank == 0:
            own = [line for held in self._held.values() for line in held.lines]
            others = [found.get((shard.file, unit.name)) for shard in beside for unit in shard.units]
            text = "".join(json.dumps(line) + "\n" for line in (*own, *others) if line)
            write_file(self.folder / JOURNAL, text.encode())
            for path in self.folder.glob(JOURNALS):
                if path.name != JOURNAL:
                    path.unlink()

    def _trust(self, shard: Shard, lines: Sequence[dict[str, Any] | None]) -> _Held:
        """The units whose bytes in the shard match these lines of the journal. The file ends after them."""
        path, held = self.folder / shard.file, _Held()
        if lines and path.is_file():
            with path.open("r+b") as file:
                digest, end = hashlib.sha256(), 0
                for line in lines:
                    assert line is not None
                    while end < line["end"] and (data := file.read(min(CHUNK, line["end"] - end))):
                        digest.update(data)
                        end += len(data)
                    if end != line["end"] or digest.hexdigest() != line["sha256"]:
                        break
                    held.lines.append(line)
                    held.digest = digest.copy()
                file.truncate(held.lines[-1]["end"] if held.lines else 0)
                os.fsync(file.fileno())
        if not held.lines:
            path.unlink(missing_ok=True)
        return held


def divided(shards: Sequence[Shard], parts: int) -> list[list[Shard]]:
    """The shards in so many parts of similar size: from the largest on, each joins the smallest part so far."""
    made: list[list[Shard]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for shard in sorted(shards, key=lambda shard: -sum(unit.bytes for unit in shard.units)):
        part = sizes.index(min(sizes))
        sizes[part] += sum(unit.bytes for unit in shard.units)
        made[part].append(shard)
    return [sorted(part, key=lambda shard: shard.file) for part in made]


def journal_name(rank: int) -> str:
    """The file of a rank's journal."""
    return JOURNAL if rank == 0 else JOURNALS.replace("*", f"-{rank}")


def read_journals(folder: Path, shards: Sequence[Shard]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The notes of all units, and the sha256 of the shards by name, when all ranks have written theirs."""
    found = _gathered(folder)
    lines = [found[shard.file, unit.name] for shard in shards for unit in shard.units]
    return [line["note"] for line in lines], {line["file"]: line["sha256"] for line in lines}


def _gathered(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of all journals by file and unit; the last one of a unit counts."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in (folder / JOURNAL, *sorted(set(folder.glob(JOURNALS)) - {folder / JOURNAL})):
        found |= _whole_lines(path)
    return found


def _whole_lines(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of a journal before the first incomplete one, by file and unit."""
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        lines[line["file"], line["unit"]] = line
    return lines
