"""A model folder on disk: its model and commit, and whether its download is complete.

A download into a folder of the user writes two hidden files, in this order:

    .slideconvert-unfinished.json   first: {id, revision}. A folder with this file alone is refused
    .slideconvert-source.json       last, after every byte was checked: {id, revision, files: {name: {size, sha256}}}

The layout of the Hugging Face cache stays unchanged, so the record of a cached snapshot is beside its folder:

    models--org--name/snapshots/<commit>/            the snapshot: links to blobs
    models--org--name/.slideconvert/<commit>.json    its record

This module does not use the network.
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

from ..checkpoint.json_text import parse_json
from ..checkpoint.origin import origin_of
from ..checkpoint.snapshot import Snapshot
from ..errors import InputError

RECORD = ".slideconvert-source.json"
UNFINISHED = ".slideconvert-unfinished.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 (hex) of a checked file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A finished download, whose files were all compared with the Hub's checksums."""

    id: str
    revision: str
    files: Mapping[str, FileFacts]

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The record of `folder`, None without one. InputError for an unreadable record."""
        path = _record_path(folder)
        values = _read_json(path)
        if values is None:
            return None
        try:
            files = {name: FileFacts(int(f["size"]), str(f["sha256"])) for name, f in values["files"].items()}
            return cls(str(values["id"]), str(values["revision"]), files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(path) from error

    def save(self, folder: Path) -> None:
        """Write the record of `folder` atomically. OSError passes."""
        files = {name: {"size": f.size, "sha256": f.sha256} for name, f in sorted(self.files.items())}
        path = _record_path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, {"id": self.id, "revision": self.revision, "files": files})

    def damage(self, folder: Path) -> str | None:
        """A sentence on the first file that is missing or has another size than recorded; None if there is none.

        Only sizes: reading a large checkpoint again takes minutes, and most damage is truncation.
        """
        for name, facts in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != facts.size:
                return f"{name} has {found:,} bytes, not {facts.size:,}"
        return None


def repo_cache(cache: Path, hub_id: str) -> Path:
    """The folder of the model `hub_id` in the Hugging Face cache."""
    return cache / "--".join(["models", *hub_id.split("/")])


def cache_identity(folder: Path) -> tuple[str, str] | None:
    """(Hub id, commit) if `folder` is …/models--org--name/snapshots/<commit>, else None."""
    *_, repo, middle, commit = ("", "", "", *folder.resolve().parts)
    kind, *names = repo.split("--")
    if kind != "models" or not names or middle != "snapshots" or not COMMIT.fullmatch(commit):
        return None
    return "/".join(names), commit


def open_folder(folder: Path) -> Snapshot:
    """The snapshot in `folder`, with its origin if that is known.

    InputError if the download of the folder is unfinished, or its files have changed since. `checkpoint.reader` checks
    whether a folder of unknown origin contains a complete checkpoint.
    """
    folder = folder.absolute()
    record = Record.load(folder)
    if record is None:
        _refuse_unfinished(folder)
        hub_id, revision = cache_identity(folder) or (folder.resolve().name, None)
        return Snapshot(folder, hub_id, revision, origin_of(folder))
    if damage := record.damage(folder):
        again = f"download it again with `{download_command(record.id, record.revision, folder)}`"
        if cache_identity(folder) is None:
            again += f", or delete {folder / RECORD} if you changed the folder yourself"
        raise InputError(f"{folder} has changed since its download from {record.id}: {damage}", hint=again)
    return Snapshot(folder, record.id, record.revision)


def claim(folder: Path, hub_id: str, revision: str) -> None:
    """Mark `folder` as the target of a download of `hub_id` at `revision`, before the first byte.

    InputError if it contains files of another download or of the user, which the download would replace. OSError
    passes.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", hint="use a folder to download into")
    record, started = Record.load(folder), read_unfinished(folder)
    owner = (record.id, record.revision) if record else started
    filled = folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())
    if filled and owner is None:
        raise InputError(f"{folder} is not empty, and not from a download", hint="use a new or empty folder")
    if filled and owner != (hub_id, revision):
        raise InputError(
            f"{folder} holds {' at '.join(owner or ())}, not {hub_id} at {revision}",
            hint="use another folder, delete this one, or pass the --revision that it holds",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / UNFINISHED, {"id": hub_id, "revision": revision})


def release(folder: Path) -> None:
    """Remove the mark of `claim`, and partial files of killed processes."""
    for leftover in interrupted_transfers(folder):
        leftover.unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)


def read_unfinished(folder: Path) -> tuple[str, str] | None:
    """(Hub id, commit) of the unfinished download into `folder`, None without one."""
    values = _read_json(folder / UNFINISHED)
    if values is None:
        return None
    try:
        return str(values["id"]), str(values["revision"])
    except (KeyError, TypeError) as error:
        raise _unreadable(folder / UNFINISHED) from error


def download_command(hub_id: str, revision: str, folder: Path) -> str:
    """The command line that completes `folder`."""
    where = [] if cache_identity(folder) else [str(folder)]
    return shlex.join(["slideconvert", "download", hub_id, *where, "--revision", revision])


def write_whole(path: Path, text: str) -> None:
    """Write a temporary file and rename it: readers see the old file or the new one, never a part."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=1) + "\n")


def _record_path(folder: Path) -> Path:
    if cache_identity(folder) is None:
        return folder / RECORD
    folder = folder.resolve()
    return folder.parent.parent / ".slideconvert" / f"{folder.name}.json"


def _read_json(path: Path) -> Any:
    """The value in `path`, None without such a file."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path}: not a record of a download", hint="delete this file and download again")


def interrupted_transfers(folder: Path) -> list[Path]:
    """Partial files of downloads by huggingface_hub whose process was killed."""
    return sorted((folder / ".cache" / "huggingface" / "download").glob("*.incomplete"))


def _refuse_unfinished(folder: Path) -> None:
    if started := read_unfinished(folder):
        raise InputError(
            f"{folder}: the download of {started[0]} is unfinished",
            hint=f"complete it with `{download_command(*started, folder)}`",
        )
    if parts := interrupted_transfers(folder):
        raise InputError(
            f"{folder}: the download is unfinished, {len(parts)} incomplete file(s) in {parts[0].parent}",
            hint="run the same `hf download … --local-dir` again, then delete *.incomplete there",
        )
