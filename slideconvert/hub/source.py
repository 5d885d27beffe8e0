"""What the user names as a model, a folder or a Hub id, becomes a local folder with one fixed state of it.

    resolve("Qwen/Qwen2.5-7B")          Snapshot(<cache>/…/snapshots/<commit>, "Qwen/Qwen2.5-7B", "<commit>")
    resolve("models/qwen")              Snapshot(models/qwen, id and commit if slideconvert downloaded it)

Nothing heavy is imported here; huggingface_hub is, once something is to be fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.hub_id import valid_id
from ..errors import InputError
from ..progress import Progress
from .download import download
from .fetch_config import fetch_config
from .listing import Listing, RemoteFile, list_files
from .snapshot import Snapshot, open_folder

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
    """Whether `source` names a model on the Hub, "org/name" or "name": nothing on this disk has that path."""
    return valid_id(source) and not Path(source).exists()


def resolve(
    source: str, *, revision: str | None = None, cache: Path | None = None, progress: Progress | None = None
) -> Snapshot:
    """The snapshot that `source` names: a folder as it is, a Hub id downloaded into `cache`.

    revision: branch, tag or commit of a Hub id (None: main). For a folder it must be the commit that it holds.
    cache: the Hugging Face cache unless said.
    Raises InputError for a source that is neither, an unfinished download or a wrong revision, and HubError
    for all that `download` raises.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        snapshot = open_folder(folder)
        if revision not in (None, snapshot.revision):
            raise InputError(
                f"{folder} holds revision {snapshot.revision or 'unknown'}, not {revision}",
                hint="leave out --revision, or name the model by its Hub id",
            )
        return snapshot
    if folder.exists():
        raise InputError(f"{folder} is a file", hint=f"give the folder that holds it: {folder.parent}")
    if not valid_id(source):
        raise InputError(f"{source}: no such folder", hint="give a checkpoint folder or a Hub id like Qwen/Qwen2.5-7B")
    return download(source, revision=revision, cache=cache, progress=progress)


def open_source(
    source: str,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    shards: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Snapshot, Checkpoint]:
    """The snapshot that `source` names, and its checkpoint. As `resolve`, if `shards` is None.

    shards: a folder that is nobody else's; shards of a Hub id are fetched into it when they are read, and deleted when
    others need the room. InputError for a local folder, where nothing is to be fetched.
    """
    from ..checkpoint.reader import Checkpoint
    from .lowdisk import open_remote

    if shards is not None and is_hub_id(source):
        return open_remote(source, shards, revision=revision, cache=cache, progress=progress)
    snapshot = resolve(source, revision=revision, cache=cache, progress=progress)
    if shards is not None:
        raise InputError(f"--low-disk: {source} is on the disk already", hint="leave it out; it is for Hub ids")
    return snapshot, Checkpoint.open(snapshot.path)


def open_for_planning(source: str, *, revision: str | None = None) -> tuple[Snapshot, Checkpoint]:
    """The snapshot that `source` names and its checkpoint, with no more fetched than a plan needs.

    A folder with weights, and a Hub id that is complete in the cache, are opened as they are; of any other, reading a
    tensor raises InputError. Raises what `resolve` does.
    """
    found = fetch_config(source, revision=revision) if is_hub_id(source) else resolve(source, revision=revision)
    from ..models.meta import open_or_describe

    return found, open_or_describe(found.path)
