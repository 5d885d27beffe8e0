"""Fetches one file of a Hub model with huggingface_hub and compares its bytes with the listing.

Callers wrap these functions in `hub_errors`, which turns failures into HubError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.files import INDEX
from ..checkpoint.json_text import parse_json
from ..errors import HubError, UnavailableError
from ..progress import Progress
from .endpoint import endpoint
from .errors import RETRY_HINT
from .listing import Listing, RemoteFile
from .snapshot import FileFacts, repo_cache

_CHUNK = 8 << 20


def cache_folder(named: Path | None) -> Path:
    """The folder of snapshots: `named`, or the Hugging Face cache (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(named or constants.HF_HUB_CACHE).expanduser().resolve()


def cached_folder(cache: Path, hub_id: str, commit: str) -> Path:
    """The folder of a commit of a model in `cache`."""
    return repo_cache(cache, hub_id) / "snapshots" / commit


@dataclass(frozen=True)
class Transfer:
    """Fetches the files of a listing into `folder` (None: into `cache`) and checks them."""

    listing: Listing
    cache: Path
    folder: Path | None = None
    progress: Progress | None = None

    @property
    def target(self) -> Path:
        """The folder that receives the files."""
        return self.folder or cached_folder(self.cache, self.listing.id, self.listing.revision)

    def get(self, file: RemoteFile) -> tuple[Path, FileFacts]:
        """Fetch one file unless it is present, and compare it with the listing.

        Returns its path, size and hash. If it differs, the bad copy is deleted, in the cache too, and HubError raised.
        """
        path = self._fetch(file)
        facts, etag = _measure(file, path, self.progress)
        if (facts.size, etag) == (file.size, file.etag):
            return path, facts
        discard(path)
        cached = cached_folder(self.cache, self.listing.id, self.listing.revision) / file.name
        if cached.is_file() and _measure(file, cached, None)[1] != file.etag:
            discard(cached)  # otherwise the next attempt would copy it from the cache again
        kind = "sha256" if len(file.etag) == 64 else "git blob sha1"
        raise UnavailableError(
            f"{self.listing.id}: {file.name} is damaged: expected {file.size:,} bytes with {kind} {file.etag}, "
            f"found {facts.size:,} bytes with {etag}",
            hint=f"the bad copy is deleted: {RETRY_HINT}; if it happens again, check the disk and the proxy",
        )

    def _fetch(self, file: RemoteFile) -> Path:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            self.listing.id,
            file.name,
            revision=self.listing.revision,
            local_dir=self.folder,
            cache_dir=self.cache,
            endpoint=endpoint(),
            library_name="slideconvert",
            library_version=__version__,
            tqdm_class=_bar(file, self.progress),
        )
        if self.progress:
            self.progress(file.name, file.size, file.size)
        return Path(path)


def _bar(file: RemoteFile, progress: Progress | None) -> type:
    """A progress bar class for huggingface_hub that prints nothing and calls `progress`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.done = initial

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            if progress:
                progress(file.name, self.done, file.size)

        # With these two methods, Xet reports to this bar instead of opening another for network bytes.
        def update_transfer(self, n: float | None = 1) -> None: ...

        def set_transfer_postfix_str(self, postfix: str, refresh: bool = False) -> None: ...

    return Bar


def _measure(file: RemoteFile, path: Path, progress: Progress | None) -> tuple[FileFacts, str]:
    """Size and SHA-256 of `path`, and its digest of the kind of `file.etag`."""
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


def discard(path: Path) -> None:
    """Delete a file. For a link of the cache, delete all links of the chain and the blob."""
    while path.is_symlink():
        link, path = path, path.parent / path.readlink()
        link.unlink()
    path.unlink(missing_ok=True)


def check_shards(listing: Listing, path: Path) -> None:
    """HubError if the index at `path` names a file that is not in the listing."""
    try:
        shards = set(parse_json(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(
            f"{listing.id}: {INDEX} is not an index of shards", hint="report this to the model's authors"
        ) from error
    if absent := sorted(map(str, shards - listing.names)):
        raise HubError(
            f"{listing.id} at {listing.revision}: {len(absent)} of {len(shards)} shards that {INDEX} names are not in "
            f"the repository: {', '.join(absent[:3])}",
            hint="the upload is incomplete: try another --revision, or report this to the model's authors",
        )
