"""Whether the disks have space for the output of a conversion and for the shards that it fetches from the Hub."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..checkpoint.disk import BESIDE, existing, free_bytes
from ..errors import DiskFullError
from ..plan.plan import Plan


def check_disk_space(plan: Plan, out: Path) -> None:
    """Raise InputError if a disk has too little space for the output in `out` and the source shards fetched to it."""
    wanted = {out: plan.bytes_after + BESIDE}
    if cached := plan.source.shard_store.disk_use:
        wanted[cached[0]] = cached[1]
    by_disk: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in wanted:
        by_disk[existing(folder).stat().st_dev].append(folder)
    for folders in by_disk.values():
        needed, free = sum(wanted[folder] for folder in folders), free_bytes(folders[0])
        if free < needed:
            what = " and ".join("the output" if folder == out else "shards of the source" for folder in folders)
            raise DiskFullError(
                f"{folders[0]}: {what} need{'s' if what == 'the output' else ''} {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free",
                hint="free disk space or choose another disk",
            )
