"""Hashes of the sources of operations: what measured times and autotuned choices of a kernel depend on."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent
SUFFIXES = (".py", ".c", ".cu", ".cuh", ".h")


@cache
def digest(*operations: str) -> str:
    """Of folders or files of kernels/, without tests, benches and references. 12 hexadecimal digits."""
    found = hashlib.sha256()
    for operation in operations:
        place = ROOT / operation
        for path in sorted(place.glob("*")) if place.is_dir() else [place]:
            aside = path.name.startswith(("test_", "bench_")) or path.name in ("reference.py", "__init__.py")
            if path.suffix in SUFFIXES and not aside:
                found.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def versioned(name: str, *operations: str) -> str:
    """The name under which something measured is kept: with the hash of the sources that it depends on."""
    return f"{name}@{digest(*operations)}" if operations else name
