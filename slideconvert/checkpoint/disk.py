"""Free space on disks, also of folders that are yet to be made."""

from __future__ import annotations

import shutil
from pathlib import Path

BESIDE = 64_000_000
"""Bytes for the files of a model folder besides its weights: tokenizer, reports, kernels."""


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or would be."""
    return shutil.disk_usage(existing(folder)).free
