"""A model folder on disk: which model it is, at which commit, and whether its download came to an end.

A download into a folder of the user's leaves two hidden files there, in this order:

    .slideconvert-unfinished.json   first: {id, revision}. While only this one is there, the folder is refused
    .slideconvert-source.json       last, when every byte is checked: {id, revision, files: {name: {size, sha256}}}

The Hugging Face cache stays as its library makes it, so the record of a cached snapshot lies beside its folder:

    models--org--name/snapshots/<commit>/            the snapshot: links to blobs
    models--org--name/.slideconvert/<commit>.json    its record

Nothing in this file speaks to the network.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

RECORD = ".slideconvert-source.json"
UNFINISHED = ".slideconvert-unfinished.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """A local folder with one fixed state of a model.

    path: the folder that holds config.json and the *.safetensors.
    id: the Hub id, or the folder's name for a folder of unknown origin.
    revision: the 40-hex commit, None for a folder of unknown origin.
    """

    path: Path
    id: str
    revision: str | None


@dataclass(frozen=True)
class FileFacts:
    """What a checked file is: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What a finished download was: every file of it has been compared with the Hub's checksums."""

    id: str
    revision: str
    files: Mapping[str, FileFacts]

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The record of `folder`, None if it has none. InputError if there is one that nobody can read."""
        path = _record_path(folder)
        words = _read_json(path)
        if words is None:
            return None
        try:
            files = {name: FileFacts(int(f["size"]), str(f["sha256"])) for name, f in words["files"].items()}
            return cls(str(words["id"]), str(words["revision"]), files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(path) from error

    def save(self, folder: Path) -> None:
        """Write the record of `folder`, whole or not at all. OSError passes."""
        files = {name: {"size": f.size, "sha256": f.sha256} for name, f in sorted(self.files.items())}
        path = _record_path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, {"id": self.id, "revision": self.revision, "files": files})

    def damage(self, folder: Path) -> str | None:
        """The first file that is gone or has another size than was recorded, as words; None if all are there.

        Sizes only: reading a large checkpoint again takes minutes, and truncation is what happens to files.
        """
        for name, facts in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != facts.size:
                return f"{name} has {found:,} bytes, not {facts.size:,}"
        return None


def repo_cache(cache: Path, hub_id: str) -> Path:
    """Where the Hugging Face cache keeps the model `hub_id`."""
    return cache / "--".join(["models", *hub_id.split("/")])


def cache_identity(folder: Path) -> tuple[str, str] | None:
    """(Hub id, commit) if `folder` is …/models--org--name/snapshots/<commit>, else None."""
    *_, repo, middle, commit = ("", "", "", *folder.resolve().parts)
    kind, *names = repo.split("--")
    if kind != "models" or not names or middle != "snapshots" or not COMMIT.fullmatch(commit):
        return None
    return "/".join(names), commit


def open_folder(folder: Path) -> Snapshot:
    """The snapshot that lies in `folder`, with its origin if that is known.

    InputError if the download that made the folder is unfinished, or its files have changed since.
    Whether a folder of unknown origin holds a whole checkpoint is for `checkpoint.reader` to find out.
    """
    folder = folder.absolute()
    record = Record.load(folder)
    if record is None:
        _refuse_unfinished(folder)
        hub_id, revision = cache_identity(folder) or (folder.resolve().name, None)
        return Snapshot(folder, hub_id, revision)
    if damage := record.damage(folder):
        again = f"download it again with `{download_command(record.id, record.revision, folder)}`"
        if cache_identity(folder) is None:
            again += f", or delete {folder / RECORD} if you changed the folder yourself"
        raise InputError(f"{folder} is no longer what was downloaded from {record.id}: {damage}", hint=again)
    return Snapshot(folder, record.id, record.revision)


def claim(folder: Path, hub_id: str, revision: str) -> None:
    """Mark `folder` as being filled with `hub_id` at `revision`, before the first byte.

    InputError if files are there that another download or the user made: the Hub's files would replace them.
    OSError passes.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="name a folder to download into")
    record, started = Record.load(folder), read_unfinished(folder)
    owner = (record.id, record.revision) if record else started
    filled = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if filled and owner is None:
        raise InputError(f"{folder} is not empty, and no download filled it", hint="name a new or an empty folder")
    if filled and owner != (hub_id, revision):
        raise InputError(
            f"{folder} holds {' at '.join(owner or ())}, not {hub_id} at {revision}",
            hint="name another folder, delete this one, or pass the --revision that it holds",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / UNFINISHED, {"id": hub_id, "revision": revision})


def release(folder: Path) -> None:
    """Take the mark of `claim` off again, and what a killed process left of its transfers."""
    for leftover in interrupted_transfers(folder):
        leftover.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)


def read_unfinished(folder: Path) -> tuple[str, str] | None:
    """(Hub id, commit) of the download that `folder` is claimed for, None if it is not."""
    words = _read_json(folder / UNFINISHED)
    if words is None:
        return None
    try:
        return str(words["id"]), str(words["revision"])
    except (KeyError, TypeError) as error:
        raise _unreadable(folder / UNFINISHED) from error


def download_command(hub_id: str, revision: str, folder: Path) -> str:
    """The command line that makes `folder` complete."""
    where = [] if cache_identity(folder) else [str(folder)]
    return shlex.join(["slideconvert", "download", hub_id, *where, "--revision", revision])


def write_whole(path: Path, text: str) -> None:
    """Write beside, then rename: readers see the old file or the new one, never half of it."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_json(path: Path, words: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(words, indent=1) + "\n")


def _record_path(folder: Path) -> Path:
    if cache_identity(folder) is None:
        return folder / RECORD
    folder = folder.resolve()
    return folder.parent.parent / ".slideconvert" / f"{folder.name}.json"


def _read_json(path: Path) -> Any:
    """What `path` says, None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path}: not a record of a download", hint="delete this file and download again")


def interrupted_transfers(folder: Path) -> list[Path]:
    """Parts of files that huggingface_hub was fetching when its process was killed."""
    return sorted((folder / ".cache" / "huggingface" / "download").glob("*.incomplete"))


def _refuse_unfinished(folder: Path) -> None:
    if started := read_unfinished(folder):
        raise InputError(
            f"{folder}: the download of {started[0]} is unfinished",
            hint=f"complete it with `{download_command(*started, folder)}`",
        )
    if parts := interrupted_transfers(folder):
        raise InputError(
            f"{folder}: the download is unfinished, {len(parts)} broken-off file(s) in {parts[0].parent}",
            hint="run the `hf download … --local-dir` that began it once more, then delete *.incomplete there",
        )
