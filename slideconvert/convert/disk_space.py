"""Whether the disks have space for the output of a conversion and for the shards that it fetches from the Hub."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

from ..errors import InputError
from ..plan.plan import Plan

BESIDE = 64_000_000
"""Bytes for the files of an output besides its weights: tokenizer, reports, kernels."""


def check_disk_space(plan: Plan, out: Path) -> None:
    """Raise InputError if a disk has too little space for the output in `out` and the source shards fetched to it."""
    wanted = {out: plan.bytes_after + BESIDE}
    if cached := plan.source.shard_store.disk_use:
        wanted[cached[0]] = cached[1]
    by_disk: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in wanted:
        by_disk[_existing(folder).stat().st_dev].append(folder)
    for folders in by_disk.values():
        needed, free = sum(wanted[folder] for folder in folders), shutil.disk_usage(_existing(folders[0])).free
        if free < needed:
            what = " and ".join("the output" if folder == out else "shards of the source" for folder in folders)
            raise InputError(
                f"{folders[0]}: {what} need{'s' if what == 'the output' else ''} {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free",
                hint="free disk space or choose another disk",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
