"""Write shards so that a resumed run produces the same bytes after an interruption at any point.

The writer writes the header of a shard, then its tensors in the planned order, unit by unit: a unit is a decoder layer,
or the tensors outside the layers. After each unit it appends a line to the journal with the shard's length and sha256
so far. A resumed run accepts a unit only if the bytes on disk have that hash, truncates the shard after the last
accepted unit and continues. So even a power failure costs only the units that the hash does not confirm.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .container import TensorSpec, header_bytes
from .staging import JOURNAL, write_file, writing

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


class WeightWriter:
    """Writes and hashes the shards of a plan in a folder, and continues after the last valid unit of its journal.

    notes: of the units written so far, in order. digests: sha256 of finished shards by name.
    """

    def __init__(self, folder: Path, shards: list[Shard]) -> None:
        self.folder = folder
        self.shards = shards
        self.notes: list[dict[str, Any]] = []
        self.digests: dict[str, str] = {}
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._order = [(shard, unit) for shard in shards for unit in shard.units]
        self._replay()
        # Stays open, so that no line gets into a folder that replaces this one.
        self._lines = (folder / JOURNAL).open("a", encoding="utf-8")

    @property
    def remaining(self) -> list[Unit]:
        """The units still to be written."""
        return [unit for _, unit in self._order[len(self.notes) :]]

    def write(self, unit: Unit, tensors: Callable[[TensorSpec], Iterable[Tensor]], note: dict[str, Any]) -> None:
        """Write the next unit. tensors: returns the contents of a tensor, in one or several consecutive pieces.

        ValueError for a unit out of order or contents of another size, OutputError if the disk is full.
        """
        shard, expected = self._order[len(self.notes)]
        if unit != expected:
            raise ValueError(f"unit {unit.name} is out of order: {expected.name} is next")
        with writing(self.folder):
            if unit == shard.units[0]:
                self._begin(shard)
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
                self._end(shard)

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

    def _begin(self, shard: Shard) -> None:
        self._file = (self.folder / shard.file).open("wb")
        self._hash = hashlib.sha256()
        self._put(header_bytes(shard.tensors))

    def _end(self, shard: Shard) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self.digests[shard.file] = self._hash.hexdigest()

    def _journal(self, shard: Shard, unit: Unit, note: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.flush()  # the bytes that the journal lists must have left this process
        line = {"unit": unit.name, "file": shard.file, "end": self._file.tell()}
        line |= {"sha256": self._hash.hexdigest(), "note": note}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self.notes.append(note)

    def _replay(self) -> None:
        """Accept the units of an interrupted run whose bytes are complete, and drop everything after them."""
        path = self.folder / JOURNAL
        lines = _whole_lines(path) if path.is_file() else []
        by_file: dict[str, list[dict[str, Any]]] = {}
        for line, (shard, unit) in zip(lines, self._order, strict=False):
            if (line["unit"], line["file"]) != (unit.name, shard.file):
                break
            by_file.setdefault(shard.file, []).append(line)
        good: list[dict[str, Any]] = []
        for shard in self.shards:
            listed = by_file.get(shard.file, [])
            held = self._trust(shard, listed)
            good += listed[:held]
            if held < len(shard.units):
                break
        self.notes = [line["note"] for line in good]
        for shard in self.shards:
            if shard.file not in {line["file"] for line in good}:
                (self.folder / shard.file).unlink(missing_ok=True)
        write_file(path, "".join(json.dumps(line) + "\n" for line in good).encode())

    def _trust(self, shard: Shard, lines: list[dict[str, Any]]) -> int:
        """The number of units whose bytes in the shard match the journal. Leaves the file open after them."""
        path, held = self.folder / shard.file, 0
        if not lines or not path.is_file():
            return 0
        file = path.open("r+b")
        digest, kept = hashlib.sha256(), hashlib.sha256()
        end = 0
        for line in lines:
            while end < line["end"] and (data := file.read(min(CHUNK, line["end"] - end))):
                digest.update(data)
                end += len(data)
            if end != line["end"] or digest.hexdigest() != line["sha256"]:
                break
            held, kept = held + 1, digest.copy()
        end = lines[held - 1]["end"] if held else 0
        file.truncate(end)
        file.seek(end)
        self._file, self._hash = file, kept
        if held == len(shard.units):
            self._end(shard)
        elif not held:
            self._close_shard()
        return held


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the journal before the first incomplete one."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
