"""Whether the disks have room for what a conversion writes, and for what it keeps of a source on the Hub."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

from ..errors import InputError
from ..plan.plan import Plan

BESIDE = 64_000_000
"""Bytes for what an output has beside its weights: tokenizer, reports, kernels."""


def check_disk_space(plan: Plan, out: Path) -> None:
    """Raise InputError if a disk has no room for the output in `out`, or for the source's shards that are fetched."""
    wanted = {out: plan.bytes_after + BESIDE}
    if rented := plan.source.shard_store.disk_use:
        wanted[rented[0]] = rented[1]
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
                hint="make room or choose another disk",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
