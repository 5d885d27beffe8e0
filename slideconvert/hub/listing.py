"""The files of a Hub model at a commit, with sizes and checksums, from one request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .. import __version__
from ..checkpoint.files import CHANNEL_ORDERS, CONFIG, INDEX, NEVER, PICKLES, SINGLE, is_companion
from ..core.hub_id import valid_id
from ..errors import HubError, InputError
from ..runtime.slidesparse_record import SOURCES, misplaced
from .errors import endpoint, hub_errors
from .snapshot import COMMIT

WANTED = (CONFIG, INDEX, CHANNEL_ORDERS, "*.safetensors", "README.md")
"""Files to fetch, from the top folder only, beside a model's companion files."""
CODE = (*SOURCES, ".md")
"""Suffixes of the code of a checkpoint."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a commit: size in bytes, and as `etag` its SHA-256 (LFS, 64 hex) or git blob SHA-1 (40 hex)."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """The files of a model at a commit that `download` fetches, in that order.

    code: further files that may be the code of one of our checkpoints; its config.json lists those that are.
    """

    id: str
    revision: str
    files: tuple[RemoteFile, ...]
    code: tuple[RemoteFile, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def names(self) -> set[str]:
        """Names of the files that are fetched."""
        return {file.name for file in self.files}

    def file(self, name: str) -> RemoteFile:
        """The file of that name, which must be one of `names`."""
        return next(file for file in self.files if file.name == name)


def list_files(hub_id: str, *, revision: str | None = None) -> Listing:
    """Ask the Hub for the commit of `revision` (branch, tag, commit; None: main) and its files.

    Raises HubError for an unknown model or revision, or one without a safetensors checkpoint.
    """
    from huggingface_hub import HfApi

    if not valid_id(hub_id):
        raise InputError(f"'{hub_id}' is not a Hub id", hint="a Hub id looks like Qwen/Qwen2.5-7B")
    with hub_errors(hub_id, revision):
        api = HfApi(endpoint=endpoint(), library_name="slideconvert", library_version=__version__)
        info = api.model_info(hub_id, revision=revision, files_metadata=True)
    code = [remote_file(file) for file in info.siblings or () if _may_be_code(file.rfilename)]
    siblings = [file for file in info.siblings or () if _may_be_fetched(file.rfilename)]
    _refuse_other_formats(hub_id, {file.rfilename for file in siblings})
    files = sorted(map(remote_file, _wanted(siblings)), key=lambda file: (is_weight(file.name), file.name))
    if not COMMIT.fullmatch(info.sha or "") or not all(file.etag for file in (*files, *code)):
        raise HubError(f"{hub_id}: the listing lacks commit or checksums", hint="check HF_ENDPOINT: is it a mirror?")
    return Listing(hub_id, str(info.sha), tuple(files), tuple(code))


def _refuse_other_formats(hub_id: str, names: set[str]) -> None:
    """HubError unless the top folder contains a safetensors checkpoint."""
    if {SINGLE, INDEX} & names:
        if CONFIG in names:
            return
        raise HubError(f"{hub_id} has no {CONFIG}", hint="choose a repository in the Hugging Face layout")
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles and not any(map(is_weight, names)):
        raise HubError(
            f"{hub_id} holds its weights only as pickles ({', '.join(pickles[:3])}), which can run code when opened",
            hint="look for a --revision with safetensors (often refs/pr/1), or for another repository of the model",
        )
    raise HubError(
        f"{hub_id} has neither {SINGLE} nor {INDEX}", hint="choose a repository with weights for transformers"
    )


def _wanted(siblings: Iterable[Any]) -> list[Any]:
    """The files to fetch. Mistral's repositories hold the weights twice: consolidated* is a second copy."""
    return [
        file
        for file in siblings
        if (is_companion(file.rfilename) or any(fnmatchcase(file.rfilename, pattern) for pattern in WANTED))
        and not file.rfilename.lower().endswith(NEVER)
        and not fnmatchcase(file.rfilename, "consolidated*.safetensors")
    ]


def _may_be_code(name: str) -> bool:
    """Whether a file of this name can be code of a checkpoint."""
    return not misplaced(name) and PurePosixPath(name).suffix in CODE


def _may_be_fetched(name: str) -> bool:
    """Whether a file lies in the top folder or where companion files do, for Windows too: a server must not choose
    other paths."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and path.parts == PureWindowsPath(name).parts and ".." not in path.parts
    return plain and (len(path.parts) == 1 or is_companion(name))


def remote_file(sibling: Any) -> RemoteFile:
    """A file of the Hub's listing. The etag is empty without size or checksum, which some mirrors omit."""
    if sibling.lfs is not None:
        return RemoteFile(sibling.rfilename, sibling.lfs.size, sibling.lfs.sha256)
    if sibling.size is None or sibling.blob_id is None:
        return RemoteFile(sibling.rfilename, 0, "")
    return RemoteFile(sibling.rfilename, sibling.size, sibling.blob_id)


def is_weight(name: str) -> bool:
    """Whether a file of this name contains weights."""
    return name.endswith(".safetensors")
