"""The safetensors container: reading and checking its header, and writing it before the data.

A file has 8 bytes of little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors
without gaps. The safetensors library writes a file at once from memory. A plan knows every shape before the first
weight is read, so we write the header first and stream the tensors after it, one decoder layer at a time. Tests read
our files with the library.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from .json_text import parse_json

ITEM_BYTES = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of an element, by the dtype name of the container."""
ALIGNMENT = 8
MAX_HEADER = 100_000_000  # what the safetensors library allows


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, container dtype name (BF16, I8 …) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Placed:
    """The position of a tensor: its file, the offset of its first byte in the file, and its spec."""

    file: Path
    offset: int
    spec: TensorSpec


def read_header(path: Path) -> dict[str, Placed]:
    """Parse and check the header of a safetensors file. InputError if it is truncated or inconsistent."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        return parse_header(path, prefix + file.read(header_length(prefix, size, path)), size)


def header_length(prefix: bytes, size: int, path: Path) -> int:
    """Bytes of the JSON header, from at least the first 8 bytes of a file of `size` bytes. InputError if invalid."""
    length = struct.unpack("<Q", prefix[:8])[0] if len(prefix) >= 8 else -1
    if not 0 < length <= min(MAX_HEADER, size - 8):
        raise _broken(path, f"not a whole safetensors file ({size} bytes, header length {length})")
    return int(length)


def parse_header(path: Path, head: bytes, size: int) -> dict[str, Placed]:
    """The tensors of the file at `path`, from `head` (prefix and header) and its size. Raises as `read_header`."""
    length = header_length(head, size, path)
    try:
        header = parse_json(head[8 : 8 + length])
        specs = [_parse_entry(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"unreadable safetensors header ({error})") from error
    placed, end = {}, 0
    for spec, start, stop in sorted(specs, key=lambda item: (item[1], item[2])):
        if spec.dtype not in ITEM_BYTES:
            raise InputError(f"{path}: tensor {spec.name} has dtype {spec.dtype}, which is not supported")
        if start != end or stop - start != spec.bytes:
            raise _broken(path, f"tensor {spec.name} is at {start} … {stop}, expected {end} … {end + spec.bytes}")
        placed[spec.name] = Placed(path, 8 + length + start, spec)
        end = stop
    if 8 + length + end != size:
        raise _broken(path, f"{size} bytes, but its header describes {8 + length + end}")
    return placed


def _broken(path: Path, why: str) -> InputError:
    return InputError(f"{path}: {why}", hint="the file is incomplete or damaged: download or copy it again")


def _parse_entry(name: str, entry: dict[str, Any]) -> tuple[TensorSpec, int, int]:
    """A tensor of the header with its start and end offset. ValueError, TypeError or KeyError for an invalid entry."""
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name}: {entry}")
    if printable(name) != name:
        raise ValueError(f"{printable(name)}: a name with control characters")
    return TensorSpec(name, dtype, shape), start, stop


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file whose header is sound. InputError if it is not text by name."""
    with path.open("rb") as file:
        prefix = file.read(8)
        header = parse_json(file.read(header_length(prefix, path.stat().st_size, path)))
    found = header.get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _broken(path, "metadata of a safetensors header are text by name")
    return found


def header_bytes(specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The length prefix and JSON header for these tensors in this order, padded to the alignment.

    metadata: besides the format. ValueError if a tensor would not start at a multiple of its item size, which readers
    cannot map.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for spec in specs:
        if offset % ITEM_BYTES[spec.dtype]:
            raise ValueError(f"{spec.name} would lie at offset {offset}, not a multiple of its item size")
        end = offset + spec.bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
