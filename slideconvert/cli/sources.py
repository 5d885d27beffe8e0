"""Sources from the Hub: where they are kept, and whether all of their weights lie on the disk at once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import options, revision_option

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint
    from ..hub.snapshot import Snapshot
    from ..progress import Progress

source_options = options(
    revision_option,
    click.option(
        "--source-cache",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where sources from the Hub are kept.  [default: the Hugging Face cache]",
    ),
    click.option(
        "--low-disk",
        is_flag=True,
        help="Fetch the shards of a Hub id as they are read and keep three at a time; some are fetched again.",
    ),
)
"""--revision, --source-cache and --low-disk, for commands that read all weights of a source."""


@contextmanager
def opened(
    source: str, out: Path, *, revision: str | None, source_cache: Path | None, low_disk: bool, progress: Progress
) -> Iterator[tuple[Snapshot, Checkpoint]]:
    """The source of a conversion into `out`. Shards of --low-disk stay as long as the conversion can be resumed."""
    from ..checkpoint.files import STAGING
    from ..hub.source import open_source

    shards = shards_folder(out, source_cache) if low_disk else None
    try:
        yield open_source(source, revision=revision, cache=source_cache, shards=shards, progress=progress)
    finally:
        if shards and not (out / STAGING).exists():
            shutil.rmtree(shards, ignore_errors=True)


def shards_folder(out: Path, source_cache: Path | None) -> Path:
    """Where --low-disk puts shards: beside the unfinished output, or in a folder of this job's in --source-cache."""
    from ..checkpoint.files import STAGING
    from ..checkpoint.staging import WORK

    if source_cache is None:
        return out.absolute() / STAGING / WORK / "source"
    job = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    return source_cache.expanduser().absolute() / f"low-disk-{job}"
