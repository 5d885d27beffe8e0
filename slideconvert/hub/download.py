"""Fetch the checkpoint files of a Hub model, pinned to one commit, and check every byte of them.

    list_files      one request: branch -> 40-hex commit, and size and checksum of every file
    Transfer.get    huggingface_hub fetches one file (Xet or HTTP) into its cache or a folder; its size, and SHA-256
                    (large files) or git's blob SHA-1 (small ones), are compared with the listing
    Record.save     last: the snapshot now counts as complete

Small files come first, so that a gated model or an index with missing shards fails in the first second. Files are
fetched one by one: Xet transfers the parts of a file in parallel anyway, and an interruption costs one file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.disk import existing, free_bytes
from ..checkpoint.files import CONFIG, INDEX
from ..checkpoint.snapshot import Snapshot
from ..errors import DiskFullError
from ..progress import Progress
from .bundled_code import fetch_code
from .errors import NOT_WRITABLE, hub_errors, offline
from .listing import Listing, RemoteFile, list_files
from .snapshot import COMMIT, FileFacts, Record, claim, open_folder, release, repo_cache, write_whole
from .transfer import Transfer, cache_folder, cached_folder, check_shards


def download(
    hub_id: str,
    directory: Path | None = None,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Fetch `hub_id` at `revision` (branch, tag, commit; None: main), check it, and return the complete snapshot.

    directory: a new or empty folder, or one that an earlier call began to fill; None: `cache` (None: the Hugging Face
    cache). A complete commit is returned without a request. Raises HubError for failures of the Hub, the network and
    the disk, InputError if the folder contains other files or the disk is too small.
    """
    folder = directory.expanduser().absolute() if directory is not None else None
    where = cache_folder(cache)
    found = find(hub_id, revision, where, folder)
    if isinstance(found, Snapshot):
        return found
    transfer = Transfer(found, where, folder, progress)
    with hub_errors(hub_id, revision):
        _check_disk_space(found, transfer.target, folder is None)
        if folder is not None:
            claim(folder, hub_id, found.revision)
        _fetch_all(transfer)
        if folder is not None:
            release(folder)
        else:
            remember_branch(found, revision, where)
    return Snapshot(transfer.target, hub_id, found.revision)


def find(
    hub_id: str, revision: str | None, cache: Path, folder: Path | None = None, *, weights: bool = True
) -> Snapshot | Listing:
    """The snapshot if it is complete in `folder` (None: in `cache`), else the listing of what to fetch.

    weights: whether an offline snapshot must contain them. HubError for an unknown model, and if the model is not on
    this machine while HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        found = _without_network(hub_id, folder, revision, cache)
        if weights and not any(found.path.glob("*.safetensors")):
            raise offline(hub_id, revision)  # a plan fetched only its config.json
        return found
    if revision and COMMIT.fullmatch(revision) and (done := _finished(hub_id, revision, folder, cache)):
        return done
    listing = list_files(hub_id, revision=revision)
    done = _finished(hub_id, listing.revision, folder, cache)
    if done is None:
        return listing
    with hub_errors(hub_id, revision):
        if folder is not None:
            release(folder)
        else:
            remember_branch(listing, revision, cache)
    return done


def _fetch_all(transfer: Transfer) -> None:
    """Fetch and check every file, then record that the snapshot is complete."""
    facts: dict[str, FileFacts] = {}
    listing = transfer.listing
    for file in listing.files:
        path, facts[file.name] = transfer.get(file)
        if file.name == INDEX:
            check_shards(listing, path)
        if file.name == CONFIG:
            facts |= fetch_code(transfer, path)
    with _if_writable() if transfer.folder is None else contextlib.nullcontext():
        Record(listing.id, listing.revision, facts).save(transfer.target)


def _check_disk_space(listing: Listing, target: Path, in_cache: bool) -> None:
    """InputError if the missing files do not fit on the disk of `target`."""

    def present(file: RemoteFile) -> bool:
        blob = target.parent.parent / "blobs" / file.etag  # an earlier commit may have the same weights
        return (target / file.name).is_file() or (in_cache and blob.is_file())

    missing = sum(file.size for file in listing.files if not present(file))
    free = free_bytes(target)
    if missing > free:
        raise DiskFullError(
            f"{listing.id} needs {missing / 1e9:,.2f} GB more, and {existing(target)} has {free / 1e9:,.2f} GB free",
            hint="free disk space, "
            + ("or set HF_HOME to a larger disk" if in_cache else "or name a folder on another disk"),
        )


def _finished(hub_id: str, commit: str, folder: Path | None, cache: Path) -> Snapshot | None:
    """The snapshot if an earlier call completed it and every file still has its size."""
    target = folder or cached_folder(cache, hub_id, commit)
    record = Record.load(target) if target.is_dir() else None
    if record is None or (record.id, record.revision) != (hub_id, commit) or record.damage(target):
        return None
    return Snapshot(target, hub_id, commit)


def _without_network(hub_id: str, folder: Path | None, revision: str | None, cache: Path) -> Snapshot:
    """The local snapshot, whichever tool downloaded it. HubError without one."""
    commit = revision
    if folder is None and (ref := _branch(hub_id, revision, cache)).is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    target = folder or (cached_folder(cache, hub_id, commit) if commit else None)
    if target is not None and target.is_dir():
        found = open_folder(target)
        if found.id == hub_id and commit in (None, found.revision):
            return found
    raise offline(hub_id, revision)


def remember_branch(listing: Listing, revision: str | None, cache: Path) -> None:
    """Record the commit of a branch in the cache, as huggingface_hub does for HF_HUB_OFFLINE."""
    if revision != listing.revision:
        with _if_writable():
            ref = _branch(listing.id, revision, cache)
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, listing.revision)


def _branch(hub_id: str, revision: str | None, cache: Path) -> Path:
    return repo_cache(cache, hub_id) / "refs" / (revision or "main")


@contextlib.contextmanager
def _if_writable() -> Iterator[None]:
    """Ignore a read-only cache: without this record, the next call checks the files again."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
