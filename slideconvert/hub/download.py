"""Fetch the checkpoint files of a Hub model, pinned to one commit, and check every byte of them.

    list_files      one request: branch -> 40-hex commit, and of every file its size and checksum
    _fetch          huggingface_hub transfers one file (Xet or HTTP) into its cache or into a folder
    _check          size, and SHA-256 (large files) or git's blob SHA-1 (small ones), against the listing
    Record.save     last: from now on the snapshot counts as complete

Small files come first, so that a gated model or an index that names absent shards fails in the first second. The
files follow one another: Xet transfers the parts of one file in parallel anyway, and a break costs one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.files import INDEX
from ..errors import HubError, InputError
from ..progress import Progress
from ..snapshot import COMMIT, FileFacts, Record, Snapshot, claim, open_folder, release, repo_cache, write_whole
from .errors import NOT_WRITABLE, endpoint, hub_errors, offline
from .listing import Listing, RemoteFile, list_files

_CHUNK = 8 << 20


def download(
    hub_id: str, directory: Path | None = None, *, revision: str | None = None, progress: Progress | None = None
) -> Snapshot:
    """Fetch `hub_id` at `revision` (branch, tag, commit; None: main), check it, and return the complete snapshot.

    directory: a new or empty folder, or one that an earlier call began to fill; None: the Hugging Face cache.
    A commit that is complete already is returned without a request. Raises HubError for all that the Hub, the
    network and the disk can do wrong, InputError if the folder is not free or the disk too small.
    """
    from huggingface_hub import is_offline_mode

    folder = directory.expanduser().absolute() if directory is not None else None
    if is_offline_mode():
        return _without_network(hub_id, folder, revision)
    if revision and COMMIT.fullmatch(revision) and (done := _finished(hub_id, revision, folder)):
        return done
    listing = list_files(hub_id, revision=revision)
    target = folder or _cached(hub_id, listing.revision)
    with hub_errors(hub_id, revision):
        if not _finished(hub_id, listing.revision, folder):
            _check_room(listing, target, folder is None)
            if folder is not None:
                claim(folder, hub_id, listing.revision)
            _fetch_all(listing, target, folder, progress)
        if folder is not None:
            release(folder)
        else:
            _remember_branch(listing, revision)
    return Snapshot(target, hub_id, listing.revision)


def _fetch_all(listing: Listing, target: Path, folder: Path | None, progress: Progress | None) -> None:
    """Fetch and check every file, then record that the snapshot is complete."""
    facts: dict[str, FileFacts] = {}
    for file in listing.files:
        path = _fetch(listing, file, folder, progress)
        facts[file.name] = _check(listing, file, path, progress)
        if file.name == INDEX:
            _check_shards(listing, path)
    with _if_writable() if folder is None else contextlib.nullcontext():
        Record(listing.id, listing.revision, facts).save(target)


def _fetch(listing: Listing, file: RemoteFile, folder: Path | None, progress: Progress | None) -> Path:
    """Let huggingface_hub bring one file; what is there already is not fetched again. Returns where it lies."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        listing.id,
        file.name,
        revision=listing.revision,
        local_dir=folder,
        cache_dir=_cache(),
        endpoint=endpoint(),
        library_name="slideconvert",
        library_version=__version__,
        tqdm_class=_bar(file, progress),
    )
    if progress:
        progress(file.name, file.size, file.size)
    return Path(path)


def _bar(file: RemoteFile, progress: Progress | None) -> type:
    """A class that huggingface_hub takes for a progress bar: silent on the terminal, it tells `progress`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.done = initial

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if progress:
                progress(file.name, self.done, file.size)

        # With these two, Xet reports on one bar instead of opening a second one for the bytes on the wire.
        def update_transfer(self, n: float | None = 1) -> None: ...

        def set_transfer_postfix_str(self, postfix: str, refresh: bool = False) -> None: ...

    return Bar


def _check(listing: Listing, file: RemoteFile, path: Path, progress: Progress | None) -> FileFacts:
    """Compare a file with the listing. HubError if it differs; the bad copy is then gone, in the cache too."""
    facts, etag = _measure(file, path, progress)
    if (facts.size, etag) == (file.size, file.etag):
        return facts
    _discard(path)
    cached = _cached(listing.id, listing.revision) / file.name
    if cached.is_file() and _measure(file, cached, None)[1] != file.etag:
        _discard(cached)  # a folder is filled from the cache where possible: it would return every time
    kind = "sha256" if len(file.etag) == 64 else "git blob sha1"
    raise HubError(
        f"{listing.id}: {file.name} is damaged: expected {file.size:,} bytes with {kind} {file.etag}, "
        f"found {facts.size:,} bytes with {etag}",
        hint="the bad copy is deleted: run the same command again; if it happens again, suspect the disk or a proxy",
    )


def _measure(file: RemoteFile, path: Path, progress: Progress | None) -> tuple[FileFacts, str]:
    """Size and SHA-256 of `path`, and its digest in the kind that `file.etag` is."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            if len(file.etag) == 40:
                blob.update(chunk)
            done += len(chunk)
            if progress:
                progress(f"checking {file.name}", done, size)
    facts = FileFacts(size, sha256.hexdigest())
    return facts, blob.hexdigest() if len(file.etag) == 40 else facts.sha256


def _discard(path: Path) -> None:
    """Delete a file and, if it is a link of the cache, every link after it and the blob at the end."""
    while path.is_symlink():
        link, path = path, path.parent / path.readlink()
        link.unlink()
    path.unlink(missing_ok=True)


def _check_shards(listing: Listing, path: Path) -> None:
    """HubError if the index at `path` names a file that is not in the listing."""
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"{listing.id}: {INDEX} is not an index of shards", hint="tell the model's authors") from error
    if absent := sorted(map(str, shards - {file.name for file in listing.files})):
        raise HubError(
            f"{listing.id} at {listing.revision}: {len(absent)} of {len(shards)} shards that {INDEX} names are not in "
            f"the repository: {', '.join(absent[:3])}",
            hint="the upload is incomplete: try another --revision, or tell the model's authors",
        )


def _check_room(listing: Listing, target: Path, in_cache: bool) -> None:
    """InputError if the files that are still missing do not fit on the disk of `target`."""

    def present(file: RemoteFile) -> bool:
        blob = target.parent.parent / "blobs" / file.etag  # also of an earlier commit with the same weights
        return (target / file.name).is_file() or (in_cache and blob.is_file())

    missing = sum(file.size for file in listing.files if not present(file))
    disk = next(folder for folder in (target, *target.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if missing > free:
        raise InputError(
            f"{listing.id} needs {missing / 1e9:,.2f} GB more, and {disk} has {free / 1e9:,.2f} GB free",
            hint="make room, "
            + ("or point HF_HOME to a larger disk" if in_cache else "or name a folder on another disk"),
        )


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _cached(hub_id: str, commit: str) -> Path:
    return repo_cache(_cache(), hub_id) / "snapshots" / commit


def _finished(hub_id: str, commit: str, folder: Path | None) -> Snapshot | None:
    """The snapshot if an earlier call completed it and no file has changed its size since."""
    target = folder or _cached(hub_id, commit)
    record = Record.load(target) if target.is_dir() else None
    if record is None or (record.id, record.revision) != (hub_id, commit) or record.damage(target):
        return None
    return Snapshot(target, hub_id, commit)


def _without_network(hub_id: str, folder: Path | None, revision: str | None) -> Snapshot:
    """The snapshot as it lies here, whoever downloaded it. HubError if there is none."""
    commit = revision
    if folder is None and (ref := _branch(hub_id, revision)).is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    target = folder or (_cached(hub_id, commit) if commit else None)
    if target is not None and target.is_dir():
        found = open_folder(target)
        if found.id == hub_id and commit in (None, found.revision):
            return found
    raise offline(hub_id, revision)


def _remember_branch(listing: Listing, revision: str | None) -> None:
    """Note in the cache which commit a branch was, as huggingface_hub does: HF_HUB_OFFLINE finds it by that."""
    if revision != listing.revision:
        with _if_writable():
            ref = _branch(listing.id, revision)
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, listing.revision)


def _branch(hub_id: str, revision: str | None) -> Path:
    return repo_cache(_cache(), hub_id) / "refs" / (revision or "main")


@contextlib.contextmanager
def _if_writable() -> Iterator[None]:
    """For notes in a cache that many share and we may only read: without them, the next call checks once more."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
