"""A Hub model whose shards are fetched when they are read, a few at a time.

Small files come into the cache, as for any model; the snapshot there does not count as complete. The headers of the
shards are read where they are. Shards come into a folder of the job's own, and only from there are they ever deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoint.container import Placed, read_header
from ..checkpoint.files import CONFIG, INDEX
from ..checkpoint.reader import Checkpoint, read_json
from ..checkpoint.shard_cache import ROOM, ShardCache
from ..errors import HubError
from ..progress import Progress
from .download import find, remember_branch
from .errors import REINSTALL_HINT, hub_errors
from .headers import remote_tensors
from .listing import is_weight
from .snapshot import Snapshot, interrupted_transfers
from .transfer import Transfer, cache_folder, discard


def open_remote(
    hub_id: str,
    folder: Path,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    room: int = ROOM,
    progress: Progress | None = None,
) -> tuple[Snapshot, Checkpoint]:
    """The model `hub_id` at `revision`, its shards still on the Hub; never more than `room` of them are in `folder`.

    A snapshot that is complete in `cache` is opened as it is. Raises what `download` does, InputError for headers that
    cannot be those of a checkpoint; reading tensors raises HubError.
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
    # A cache of its own: what lies in the shared one is neither copied nor, if it is damaged, deleted.
    fetch = Fetch(replace(transfer, cache=folder, folder=folder), tensors)
    shard_store = ShardCache(folder, {name: found.file(name).size for name in used}, fetch, room)
    return Snapshot(path, hub_id, found.revision), Checkpoint(path, read_json(path / CONFIG), tensors, shard_store)


class Fetch:
    """Brings the shards of a listing, each checked against its sha256 and against what its header promised."""

    def __init__(self, transfer: Transfer, tensors: Mapping[str, Placed]) -> None:
        self.transfer = transfer
        self._promised: dict[str, dict[str, Placed]] = {}
        for name, placed in tensors.items():
            self._promised.setdefault(placed.file.name, {})[name] = placed
        for part in interrupted_transfers(transfer.target):
            part.unlink(missing_ok=True)  # of a killed run: nobody else's

    def __call__(self, name: str) -> int:
        listing = self.transfer.listing
        file = listing.file(name)
        there = (self.transfer.target / name).is_file()
        try:
            with hub_errors(listing.id, listing.revision):
                path, _ = self.transfer.get(file)
            found = read_header(path)
            if any(found.get(tensor) != placed for tensor, placed in self._promised[name].items()):
                discard(path)
                raise HubError(
                    f"{listing.id}: the header of {name} was another when it was read alone",
                    hint=f"suspect a proxy; {REINSTALL_HINT}",
                )
        except HubError as error:
            raise HubError(error.what, hint=error.hint.replace(REINSTALL_HINT, "go on with --resume")) from error
        return 0 if there else file.size
