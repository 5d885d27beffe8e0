"""Whether the disks have space for the output of a conversion, for what --resume keeps beside it, and for the shards
that it fetches from the Hub."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..calibrate.run import RunSettings
from ..checkpoint.disk import existing, free_bytes
from ..errors import DiskFullError
from ..plan.disk import disk_use
from ..plan.plan import Plan


def check_disk_space(plan: Plan, out: Path, settings: RunSettings) -> None:
    """Raise DiskFullError if a disk has too little space for the output in `out`, its unfinished state, and the source
    shards fetched to it. What an interrupted run has written there is not needed once more."""
    use = disk_use(plan, settings.keep_on, settings.running)
    parts = {"the output": use.output, "the state for --resume": use.resume, "hidden states": use.hidden}
    wanted = {out: parts}
    if cached := plan.source.shard_store.disk_use:
        wanted[cached[0]] = {"shards of the source": cached[1]}
    by_disk: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in wanted:
        by_disk[existing(folder).stat().st_dev].append(folder)
    for folders in by_disk.values():
        found = {what: size for folder in folders for what, size in wanted[folder].items() if size}
        free = free_bytes(folders[0]) + _written(folders)
        needed = sum(found.values())
        if free < needed:
            what = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in found.items())
            raise DiskFullError(
                f"{folders[0]}: the disk needs {needed / 1e9:.2f} GB ({what}), {free / 1e9:.2f} GB are free",
                hint="free disk space or choose another disk" + _smaller(use.training, use.hidden),
            )


def _smaller(training: int, hidden: int) -> str:
    ways = [way for way, size in (("omit --keep-on disk", hidden), ("--end-epochs 0", training)) if size]
    return f"; needs less: {', '.join(ways)}" if ways else ""


def _written(folders: list[Path]) -> int:
    """Bytes of the files that an interrupted run has left in an output and in a folder of shards inside it or not."""
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files)
