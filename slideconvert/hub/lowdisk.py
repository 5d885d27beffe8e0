"""A Hub model whose shards are fetched when they are read, a few at a time.

Small files go to the cache, as for any model; the snapshot there does not count as complete. Shard headers are read
remotely. Shards go to a folder of the job, and are deleted only there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoint.container import Placed, read_header
from ..checkpoint.files import CONFIG, INDEX
from ..checkpoint.reader import Checkpoint, read_json
from ..checkpoint.shard_cache import ShardCache
from ..checkpoint.snapshot import Snapshot
from ..errors import HubError, UnavailableError
from ..progress import Progress
from .download import find, remember_branch
from .errors import RETRY_HINT, hub_errors
from .headers import remote_tensors
from .listing import is_weight
from .snapshot import interrupted_transfers
from .transfer import Transfer, cache_folder, discard


def open_remote(
    hub_id: str,
    folder: Path,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Snapshot, Checkpoint]:
    """The model `hub_id` at `revision`, with its shards on the Hub; at most CAPACITY of them are in `folder`.

    A complete snapshot in `cache` is opened as it is. Raises what `download` does, and InputError for headers that no
    checkpoint has; reading tensors raises HubError.
    """
    where = cache_folder(cache)
    found = find(hub_id, revision, where)
    if isinstance(found, Snapshot):
        return found, Checkpoint.open(found.path)
    transfer = Transfer(found, where, progress=progress)
    with hub_errors(hub_id, revision):
        for file in found.files:
            if not is_weight(file.name):
                transfer.get(file)
        remember_branch(found, revision, where)
    path = transfer.target
    tensors = remote_tensors(found, path / INDEX, folder)
    used = sorted({placed.file.name for placed in tensors.values()})
    # A separate cache: files of the shared one are neither copied nor, if damaged, deleted.
    fetch = Fetch(replace(transfer, cache=folder, folder=folder), tensors)
    shard_store = ShardCache(folder, {name: found.file(name).size for name in used}, fetch)
    return Snapshot(path, hub_id, found.revision), Checkpoint(path, read_json(path / CONFIG), tensors, shard_store)


class Fetch:
    """Fetches the shards of a listing and checks each against its sha256 and its earlier header."""

    def __init__(self, transfer: Transfer, tensors: Mapping[str, Placed]) -> None:
        self.transfer = transfer
        self._headers: dict[str, dict[str, Placed]] = {}
        for name, placed in tensors.items():
            self._headers.setdefault(placed.file.name, {})[name] = placed
        for part in interrupted_transfers(transfer.target):
            part.unlink(missing_ok=True)  # from a killed run of this job

    def __call__(self, name: str) -> int:
        listing = self.transfer.listing
        file = listing.file(name)
        present = (self.transfer.target / name).is_file()
        try:
            with hub_errors(listing.id, listing.revision):
                path, _ = self.transfer.get(file)
            found = read_header(path)
            if any(found.get(tensor) != placed for tensor, placed in self._headers[name].items()):
                discard(path)
                raise UnavailableError(
                    f"{listing.id}: the header of {name} differs from the one that was read before the download",
                    hint=f"check the proxy; {RETRY_HINT}",
                )
        except HubError as error:
            raise type(error)(error.what, hint=error.hint.replace(RETRY_HINT, "continue with --resume")) from error
        return 0 if present else file.size
