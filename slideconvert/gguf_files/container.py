"""Opening a GGUF file: its structure is walked and bounded before the gguf package reads it.

The package follows lengths and counts of the file without a limit: one damaged number makes it loop or run out of
memory. The walk reads the same structure (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and keeps nothing:

    magic "GGUF", version, number of tensors, number of fields
    fields: name, type, value (number, string, or array of them)
    tensors: name, dimensions (the fastest first), type, offset
    padding to general.alignment, then the data of the tensors
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, one_line, printable

SUFFIX = ".gguf"
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
MAGIC = b"GGUF"
VERSIONS = (2, 3)
LONGEST = 1 << 16
"""Bytes of the name of a field or tensor, at most; the format allows 65535."""
DIMENSIONS = 4
AGAIN = "the file is incomplete or damaged: download or copy it again"
MERGE = "merge the parts into one file with `llama-gguf-split --merge` of llama.cpp"
ALIGNMENT = "general.alignment"

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letter of a field's type by its number in the file."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the file stores it.

    kind: name of its type (Q4_1, F16 …). shape: the slowest dimension first, as in torch. start, bytes: of its data in
    the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file: its fields and the position of each tensor. No data of tensors is kept in memory."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """general.architecture. InputError without one."""
        return str(self.field("general.architecture", str))

    def field(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """The value of a field. InputError if the file lacks it or it has another type."""
        value = self.fields.get(name)
        if not isinstance(value, kind):
            found = "is missing" if value is None else f"is {one_line(str(value))[:40]}"
            raise InputError(f"{self.path}: field {name} {found}", hint="make the file again with a newer llama.cpp")
        return value

    @property
    def main_kind(self) -> str:
        """The type of most weights."""
        elements: Counter[str] = Counter()
        for tensor in self.tensors.values():
            elements[tensor.kind] += tensor.elements
        return elements.most_common(1)[0][0]

    @property
    def kinds(self) -> str:
        """The tensors by type, the most frequent first: "210 Q4_1, 61 F32, 1 Q8_0"."""
        counted = Counter(tensor.kind for tensor in self.tensors.values())
        return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file, checking its structure against its size.

    InputError for a file that is none, truncated, in parts, of an unknown version or with unknown types of tensors, and
    if the package gguf is not installed.
    """
    gguf = gguf_package(path)
    if SPLIT.search(path.name):
        raise InputError(f"{path} is one part of a model in several files", hint=MERGE)
    try:
        with path.open("rb") as file:
            _Walk(path, file, path.stat().st_size, gguf.GGML_QUANT_SIZES).check()
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint="check its permissions") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:  # duplicate names, text that is not UTF-8
        raise _damaged(path, one_line(str(error))[:200]) from error
    if fields.get("split.count", 0) > 1:
        raise InputError(f"{path} is one of {fields['split.count']} parts of a model", hint=MERGE)
    tensors = {
        tensor.name: GgufTensor(
            tensor.name,
            tensor.tensor_type.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    }
    if not tensors:
        raise InputError(f"{path}: no tensors, only metadata", hint="get the file with the weights")
    return GgufFile(path, fields, tensors)


def gguf_package(path: Path) -> Any:
    """The gguf package. InputError about `path` if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path}: reading GGUF needs the package gguf, which is not installed",
            hint="pip install 'slideconvert[gguf]'",
        ) from error
    return gguf


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: {why}", hint=AGAIN)


class _Walk:
    """A walk through the structure of a file of `size` bytes. sizes: elements and bytes of a block, by tensor type."""

    def __init__(self, path: Path, file: BinaryIO, size: int, sizes: dict[int, tuple[int, int]]) -> None:
        self.path, self.file, self.size = path, file, size
        self.sizes = {int(kind): block for kind, block in sizes.items()}
        self.alignment = 32

    def check(self) -> None:
        """InputError for the first thing that the format does not allow or that the file does not hold."""
        magic = self.file.read(4)
        if magic != MAGIC:
            raise InputError(
                f"{self.path}: not a GGUF file ({self.size} bytes, begins with {magic.hex() or 'nothing'})",
                hint="GGUF files begin with the letters GGUF; was an error page or a pointer downloaded instead?",
            )
        version = self.number("I", "the version")
        if version not in VERSIONS:
            raise InputError(
                f"{self.path}: GGUF version {version}, known are {' and '.join(map(str, VERSIONS))}",
                hint="make the file again with a newer llama.cpp, for a little-endian machine",
            )
        tensors, fields = self.number("Q", "the number of tensors"), self.number("Q", "the number of fields")
        for number in range(fields):
            name = self.name(f"field {number + 1} of {fields}")
            self.value(self.number("I", name), name)
        ends = [self.tensor(f"tensor {number + 1} of {tensors}") for number in range(tensors)]
        start = -(-self.file.tell() // self.alignment) * self.alignment
        for name, end in ends:
            if start + end > self.size:
                raise _damaged(self.path, f"ends at byte {self.size:,}, tensor {name} at {start + end:,}")

    def number(self, letter: str, where: str) -> Any:
        """One number."""
        length = struct.calcsize(letter)
        data = self.file.read(length)
        if len(data) < length:
            raise _damaged(self.path, f"ends inside {where} ({self.size:,} bytes)")
        return struct.unpack(f"<{letter}", data)[0]

    def name(self, where: str) -> str:
        """The name of a field or tensor."""
        length = self.number("Q", where)
        if length > LONGEST:
            raise _damaged(self.path, f"{where} has a name of {length:,} bytes")
        self.within(length, where)
        name = self.file.read(length).decode("utf-8", "replace")
        if printable(name) != name:
            raise _damaged(self.path, f"{where} has a name with control characters: {printable(name)[:40]}")
        return name

    def within(self, count: int, where: str) -> int:
        """`count`, if the file has that many bytes left."""
        if count > self.size - self.file.tell():
            raise _damaged(self.path, f"ends inside {where} ({self.size:,} bytes)")
        return count

    def value(self, kind: int, where: str) -> None:
        """The value of a field, or an element of an array."""
        if kind == _STRING:
            self.file.seek(self.within(self.number("Q", where), where), 1)
        elif kind == _ARRAY:
            self.array(self.number("I", where), self.number("Q", where), where)
        elif kind in _SCALARS:
            found = self.number(_SCALARS[kind], where)
            if where == ALIGNMENT:
                self.align(found)
        else:
            raise _damaged(self.path, f"field {where} has type {kind}, which is unknown")

    def array(self, kind: int, count: int, where: str) -> None:
        """The elements of an array."""
        if kind in _SCALARS:
            self.file.seek(self.within(count * struct.calcsize(_SCALARS[kind]), where), 1)
            return
        if kind != _STRING:
            raise _damaged(self.path, f"field {where} is an array of type {kind}")
        self.within(8 * count, where)  # each has a length, so that `count` is a number that the file can hold
        for _ in range(count):
            self.value(kind, where)

    def align(self, alignment: int) -> None:
        """The alignment of the data of tensors."""
        if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _damaged(self.path, f"{ALIGNMENT} is {alignment}, not a power of two from 8 on")
        self.alignment = alignment

    def tensor(self, where: str) -> tuple[str, int]:
        """The name of a tensor and the end of its data, relative to the start of all data."""
        name = self.name(where)
        dimensions = self.number("I", name)
        if dimensions > DIMENSIONS:
            raise _damaged(self.path, f"tensor {name} has {dimensions} dimensions")
        shape = [self.number("Q", name) for _ in range(dimensions)]
        kind, offset = self.number("I", name), self.number("Q", name)
        if kind not in self.sizes:
            raise InputError(
                f"{self.path}: tensor {name} has type {kind}, which the installed gguf package does not know",
                hint="pip install --upgrade gguf, or get the model in another type, such as Q8_0 or BF16",
            )
        block, size = self.sizes[kind]
        if shape and shape[0] % block:
            raise _damaged(self.path, f"tensor {name} has rows of {shape[0]} elements in blocks of {block}")
        return name, offset + math.prod(shape) // block * size
