"""The code that travels with a checkpoint: the kernels it was made for, and what lets transformers run them.

It is copied in when a checkpoint is made, and compared with the record whenever one is loaded. Where slideconvert is
installed its own kernels run, never those of a checkpoint; changed ones are refused all the same, because whoever
runs this checkpoint without slideconvert would run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.staging import write_file
from ..errors import InputError
from .slidesparse_record import AGAIN, CODE_FILES, KERNELS, SOURCES, bundle_faults

SOURCE = Path(__file__).resolve().parent
OPERATIONS = SOURCE.parent / KERNELS


def bundle_kernels(folder: Path) -> dict[str, str]:
    """Copy the operations (not their tests and benches) into folder/kernels, and the files that run them from
    transformers beside it; sha256 by path in the folder."""
    files = {name: SOURCE / name for name in CODE_FILES}
    for path in sorted(OPERATIONS.rglob("*")):
        development = path.name.startswith(("test_", "bench_")) or "__pycache__" in path.parts
        if path.suffix in (*SOURCES, ".md") and not development:
            files[f"{KERNELS}/{path.relative_to(OPERATIONS).as_posix()}"] = path
    digests = {}
    for name, path in sorted(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digests[name] = write_file(folder / name, path.read_bytes())
    return digests


def check_bundle(folder: Path, hashes: Mapping[str, str]) -> None:
    """InputError if code in the checkpoint `folder` is changed, missing or not listed in its record's kernels."""
    for fault in bundle_faults(folder, hashes):
        raise InputError(f"{folder}: {fault}", hint=AGAIN)
