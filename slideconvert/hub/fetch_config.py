"""The config.json of a Hub model, which is all that a plan needs. The cached snapshot does not count as complete."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.files import CONFIG
from ..checkpoint.snapshot import Snapshot
from .download import find, remember_branch
from .errors import hub_errors
from .transfer import Transfer, cache_folder


def fetch_config(hub_id: str, *, revision: str | None = None, cache: Path | None = None) -> Snapshot:
    """The snapshot of `hub_id` at `revision`: the complete one in `cache` if it exists, else one with config.json.

    Raises what `download` does.
    """
    where = cache_folder(cache)
    found = find(hub_id, revision, where, weights=False)
    if isinstance(found, Snapshot):
        return found
    transfer = Transfer(found, where)
    with hub_errors(hub_id, revision):
        transfer.get(found.file(CONFIG))
        remember_branch(found, revision, where)
    return Snapshot(transfer.target, hub_id, found.revision)
