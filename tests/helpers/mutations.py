"""Seeded damage of the files of a checkpoint: JSON with strange values, and bytes that are not what they were."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

RAW = ("NaN", "Infinity", "1e400", '"\\ud800"', "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "9" * 5000)
"""JSON texts, or nearly, that Python's json reads or fails on in ways of its own."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 10**9, 10**12, 2**31, 2**63, 10**30, 1e300, 1e-300,
    "", "x", "0", "1", "64", "\u0663", "\u00b2", "[red]name[/red]", "[/]", "\x1b[31mred", "../../etc/passwd",
    "a" * 5000, "\u202e", "\x00", [], [1], ["x"], [None], [[1], [2]], {}, {"a": 1}, {"": ""},
)  # fmt: skip


def strange_json(text: str, random: Random) -> str:
    """One to three members of a JSON text replaced, removed or renamed."""
    value = json.loads(text)
    replaced: dict[str, str] = {}
    for number in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(value, random, f"@{number}@", replaced)
    out = json.dumps(value)
    for mark, raw in replaced.items():
        out = out.replace(f'"{mark}"', raw)
    return out


def _changed(value: Any, random: Random, mark: str, replaced: dict[str, str]) -> Any:
    """value with one member changed, at any depth. Adds texts that are no Python values to `replaced`, by mark."""
    inner = isinstance(value, dict | list) and value and random.random() < 0.85
    if not inner:
        if random.random() < 0.2:
            replaced[mark] = random.choice(RAW)
            return mark
        return copy.deepcopy(random.choice(VALUES))
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    step = random.random()
    if step < 0.1:
        del value[key]
    elif step < 0.15 and isinstance(value, dict):
        value[str(random.choice(VALUES))[:100]] = value.pop(key)
    else:
        value[key] = _changed(value[key], random, mark, replaced)
    return value


def strange_bytes(data: bytes, random: Random) -> bytes:
    """Bytes flipped, cut, doubled, or in another encoding."""
    kind = random.randrange(6)
    at = random.randrange(len(data)) if data else 0
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + random.randbytes(random.randrange(1, 40)) + data[at:]
    if kind == 3:
        return data + data
    if kind == 4:
        return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00")) + data
    return data.decode("utf-8", errors="replace").encode("utf-16")


def strange_header(data: bytes, random: Random) -> bytes:
    """A safetensors file with a strange header before the same data."""
    length = struct.unpack("<Q", data[:8])[0]
    header = strange_json(data[8 : 8 + length].decode(), random).encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def damage(path: Path, random: Random) -> None:
    """Change one file in a way that suits its kind."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        made = strange_header(data, random) if random.random() < 0.7 else strange_bytes(data, random)
    elif path.suffix == ".json" and random.random() < 0.8:
        made = strange_json(data.decode(), random).encode("utf-8", errors="surrogatepass")
    elif path.suffix == ".jsonl" and random.random() < 0.6:
        lines = data.decode().splitlines()
        at = random.randrange(len(lines))
        lines[at] = strange_json(lines[at], random)
        made = "\n".join(lines).encode("utf-8", errors="surrogatepass")
    else:
        made = strange_bytes(data, random)
    path.unlink()  # it may be a hard link
    path.write_bytes(made)
