"""Resolve a model, a folder, a Hub id or a GGUF file, to a local folder with one fixed state of it.

    resolve("Qwen/Qwen2.5-7B")          Snapshot(<cache>/…/snapshots/<commit>, "Qwen/Qwen2.5-7B", "<commit>")
    resolve("models/qwen")              Snapshot(models/qwen, id and commit if slideconvert downloaded it)
    resolve("models/qwen.Q8_0.gguf")    Snapshot(<cache>/qwen.Q8_0-<hash>, the file's name, and what it was)

This module imports nothing heavy; huggingface_hub is imported when something is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.snapshot import Snapshot
from ..core.hub_id import valid_id
from ..errors import HubError, InputError, did_you_mean
from ..gguf_files.container import SUFFIX
from ..gguf_files.source import gguf_file
from ..progress import Progress
from .download import download
from .fetch_config import fetch_config
from .listing import Listing, RemoteFile, list_files
from .snapshot import open_folder

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint

__all__ = [
    "Listing",
    "RemoteFile",
    "Snapshot",
    "download",
    "is_hub_id",
    "list_files",
    "open_for_planning",
    "open_source",
    "resolve",
]


def is_hub_id(source: str) -> bool:
    """Whether `source` is a Hub id ("org/name" or "name") and no local path."""
    return valid_id(source) and not Path(source).exists() and not source.lower().endswith(SUFFIX)


def resolve(
    source: str, *, revision: str | None = None, cache: Path | None = None, progress: Progress | None = None
) -> Snapshot:
    """The snapshot that `source` names: a folder as it is, a Hub id downloaded into `cache`, a GGUF file dequantized
    into `cache`.

    revision: branch, tag or commit of a Hub id (None: main); for a folder, its commit. cache: None for the Hugging
    Face cache. Raises InputError for a source that is neither, an unfinished download or a wrong revision, and what
    `download` raises.
    """
    if file := gguf_file(source):
        return _dequantized(file, revision, cache, progress)
    folder = Path(source).expanduser()
    if folder.is_dir():
        snapshot = open_folder(folder)
        if revision not in (None, snapshot.revision):
            raise InputError(
                f"{folder} holds revision {snapshot.revision or 'unknown'}, not {revision}",
                hint="omit --revision, or use the Hub id of the model",
            )
        return snapshot
    if folder.exists():
        raise InputError(f"{folder} is a file", hint=f"use the folder that contains it: {folder.parent}")
    if not valid_id(source):
        raise InputError(f"{source}: no such folder", hint="use a checkpoint folder or a Hub id like Qwen/Qwen2.5-7B")
    with _perhaps_a_path(source):
        return download(source, revision=revision, cache=cache, progress=progress)


def open_source(
    source: str,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    shards: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Snapshot, Checkpoint]:
    """The snapshot that `source` names and its checkpoint, as `resolve` finds it.

    shards: a folder of this job that receives the shards of a Hub id when they are read, a few at a time; None fetches
    all shards first. InputError for `shards` with a local folder.
    """
    from ..checkpoint.reader import Checkpoint
    from .lowdisk import open_remote

    if shards is not None:
        check_remote(source)
        with _perhaps_a_path(source):
            return open_remote(source, shards, revision=revision, cache=cache, progress=progress)
    snapshot = resolve(source, revision=revision, cache=cache, progress=progress)
    return snapshot, Checkpoint.open(snapshot.path)


def check_remote(source: str) -> None:
    """InputError for a source whose shards --low-disk cannot fetch one by one."""
    if not is_hub_id(source):
        raise InputError(f"--low-disk: {source} is already on the disk", hint="omit it; it applies to Hub ids only")


def open_for_planning(
    source: str, *, revision: str | None = None, cache: Path | None = None
) -> tuple[Snapshot, Checkpoint]:
    """The snapshot that `source` names and its checkpoint, fetching only what a plan needs, into `cache`.

    A folder with weights and a Hub id that is complete in the cache are opened as they are. In all other cases, reading
    a tensor raises InputError. Raises what `resolve` does.
    """
    if file := gguf_file(source):
        found = _dequantized(file, revision, cache, weights=False)
    elif is_hub_id(source):
        with _perhaps_a_path(source):
            found = fetch_config(source, revision=revision, cache=cache)
    else:
        found = resolve(source, revision=revision)
    from ..models.meta import open_or_describe

    return found, open_or_describe(found.path)


@contextmanager
def _perhaps_a_path(source: str) -> Iterator[None]:
    """InputError for a Hub id that cannot be fetched and looks like a path, since it begins with a folder that exists:
    a mistyped path is no failure of the network."""
    try:
        yield
    except HubError as error:
        folder = Path(source).parent
        if folder == Path() or not folder.is_dir():
            raise
        names = [path.name for path in folder.iterdir() if path.is_dir()]
        meant = did_you_mean(Path(source).name, names, folder=folder)
        raise InputError(
            f"{source}: no such folder, and as a Hub id: {error.what}", hint=f"{meant}{folder} has {len(names)} folders"
        ) from error


def _dequantized(
    file: Path,
    revision: str | None,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    weights: bool = True,
) -> Snapshot:
    """The folder made from a GGUF file, which has no revisions: InputError for one."""
    from ..gguf_files.folder import dequantized

    if revision is not None:
        raise InputError(f"--revision {revision}: {file} is a file", hint="omit it; it applies to Hub ids only")
    return dequantized(file, cache, weights=weights, progress=progress)
