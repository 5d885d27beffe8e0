"""The files of a Hub model at a commit, with sizes and checksums, from one request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from .. import __version__
from ..checkpoint.files import CHANNEL_ORDERS, CHANNEL_SCALES, CONFIG, INDEX, NEVER, PICKLES, SINGLE, is_companion
from ..core.hub_id import valid_id
from ..errors import HubError, InputError
from ..gguf_files.container import SUFFIX
from ..runtime.slidesparse_record import SOURCES, misplaced
from .answers import EXPECTED, not_a_hub
from .endpoint import endpoint
from .errors import hub_errors
from .snapshot import COMMIT

WANTED = (CONFIG, INDEX, CHANNEL_ORDERS, CHANNEL_SCALES, "*.safetensors", "README.md")
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
    commit, everything = commit_of(info), files_of(info)
    code = [file for file in everything if _may_be_code(file.name)]
    there = [file for file in everything if _may_be_fetched(file.name)]
    _refuse_other_formats(hub_id, {file.name for file in there})
    files = sorted(_wanted(there), key=lambda file: (is_weight(file.name), file.name))
    if commit is None or not all(file.etag for file in (*files, *code)):
        raise HubError(f"{hub_id}: the listing lacks commit or checksums", hint="check HF_ENDPOINT: is it a mirror?")
    return Listing(hub_id, commit, tuple(files), tuple(code))


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
    if files := sorted(name for name in names if name.lower().endswith(SUFFIX)):
        raise HubError(
            f"{hub_id} holds its weights as GGUF ({', '.join(files[:3])})",
            hint=f"fetch one file with `hf download {hub_id} {files[0]}` and give its path",
        )
    raise HubError(
        f"{hub_id} has neither {SINGLE} nor {INDEX}", hint="choose a repository with weights for transformers"
    )


def _wanted(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files to fetch. Mistral's repositories hold the weights twice: consolidated* is a second copy."""
    return [
        file
        for file in files
        if (is_companion(file.name) or any(fnmatchcase(file.name, pattern) for pattern in WANTED))
        and not file.name.lower().endswith(NEVER)
        and not fnmatchcase(file.name, "consolidated*.safetensors")
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


def commit_of(info: Any) -> str | None:
    """The commit of huggingface_hub's ModelInfo (40 hex), None without one. HubError for anything else."""
    if info.sha is None or (isinstance(info.sha, str) and COMMIT.fullmatch(info.sha)):
        return info.sha
    raise not_a_hub(EXPECTED["model_info"])


def files_of(info: Any) -> tuple[RemoteFile, ...]:
    """The files of huggingface_hub's ModelInfo. The etag is empty without size or checksum, which some mirrors omit.

    HubError for names, sizes and checksums of other types.
    """
    return tuple(map(_remote_file, info.siblings or ()))


def _remote_file(sibling: Any) -> RemoteFile:
    name, size, etag = sibling.rfilename, sibling.size, sibling.blob_id
    if sibling.lfs is not None:
        size, etag = sibling.lfs.size, sibling.lfs.sha256
    elif size is None or etag is None:
        size, etag = 0, ""
    if not isinstance(name, str) or type(size) is not int or size < 0 or not isinstance(etag, str):
        raise not_a_hub(EXPECTED["model_info"])
    return RemoteFile(name, size, etag)


def is_weight(name: str) -> bool:
    """Whether a file of this name contains weights."""
    return name.endswith(".safetensors")
