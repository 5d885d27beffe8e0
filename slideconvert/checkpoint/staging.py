"""The working folder of a conversion, so that an unfinished output never looks finished.

A conversion writes into OUT/.slideconvert-partial. When all files are complete and verified, `publish` moves them to
OUT, the index (or the single weight file) last, and removes the working folder. Readers refuse an output that contains
one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .. import ranks
from ..errors import DiskFullError, InputError, OutputError
from .files import INDEX, SINGLE, STAGING
from .reader import read_json

JOURNAL = "journal.jsonl"
JOURNALS = "journal*.jsonl"
"""The journals of all ranks: that of the first, and `journal-1.jsonl` … of the others."""
STATE = "state.json"
WORK = "work"
"""Folder for intermediate results of a job, which are not part of the output."""


class Staging:
    """The working folder of an output. state: identifies the job; only the same job may resume it.

    InputError if the output exists or belongs to another job, OutputError if it cannot be written.
    """

    def __init__(self, out: Path, state: dict[str, Any], *, resume: bool) -> None:
        self.out = out
        self.path = out / STAGING
        if not ranks.first():
            self._join(state)
            return
        if resume and (self.path / STATE).is_file():
            self._check_same_job(state)
            return
        check_free(out, resume=resume)
        if self.path.exists():
            shutil.rmtree(self.path)  # killed before its first or after its last step: start again
        with writing(out):
            self.path.mkdir(parents=True)
            write_file(self.path / STATE, (json.dumps(state, indent=1) + "\n").encode())

    def _join(self, state: dict[str, Any]) -> None:
        """Work beside rank 0, which has made the folder."""
        if not (self.path / STATE).is_file():
            raise InputError(
                f"{self.path}: {socket.gethostname()} does not see what rank 0 has written there",
                hint="name a folder on a file system that all hosts share",
            )
        self._check_same_job(state)

    def _check_same_job(self, state: dict[str, Any]) -> None:
        before = read_json(self.path / STATE)
        changed = sorted(key for key in {*before, *state} if before.get(key) != state.get(key))
        if changed:
            what = "; ".join(f"{key} was {before.get(key)}, is {state.get(key)}"[:300] for key in changed)
            raise InputError(
                f"{self.out} was started with other settings: {what}",
                hint="resume with these settings, or delete the folder and start again",
            )

    def discard(self) -> None:
        """Remove everything that this job wrote; the first rank does it for all."""
        if ranks.first():
            shutil.rmtree(self.path, ignore_errors=True)

    def publish(self) -> None:
        """Move the finished files to OUT, the one that makes it loadable last, and remove the working folder.

        After an interruption, OUT still contains the working folder, so readers refuse it and --resume completes it.
        """
        journals = {path.name for path in self.path.glob(JOURNALS)}
        names = sorted({entry.name for entry in self.path.iterdir()} - journals - {STATE, WORK})
        last = INDEX if INDEX in names else SINGLE
        with writing(self.out):
            for name in sorted(names, key=lambda name: name == last):
                target = self.out / name
                if target.is_dir():
                    shutil.rmtree(target)
                (self.path / name).replace(target)
            shutil.rmtree(self.path)
            _sync_folder(self.out)


def check_free(out: Path, *, resume: bool) -> None:
    """Raise InputError unless `out` is new or empty, or contains an unfinished conversion and `resume` is set."""
    unfinished = (out / STAGING).exists()
    if (resume and unfinished) or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    raise InputError(
        f"{out} is {'an unfinished conversion' if unfinished else 'not an empty folder'}",
        hint="finish it with --resume, or delete it" if unfinished else "name a new folder, or empty this one",
    )


def check_new_file(path: Path) -> None:
    """InputError if the file exists already or has no folder."""
    if path.exists():
        raise InputError(f"{path} exists already", hint="name a new file, or delete this one")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist", hint="create it, or name another")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name, synced and renamed to `path` at the end of the block: a file of that
    name is complete. OSError passes."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_file(path: Path, data: bytes) -> str:
    """Write a small file as `replacing` does; return its sha256 (hex). OSError passes."""
    with replacing(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(where: Path, *, after_full: str = "free disk space and --resume") -> Iterator[None]:
    """Raise OutputError for a full disk, missing permission, or a path that is unusable or gone; other errors pass.

    after_full: the way out for a full disk.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError):
            raise OutputError(f"{where}: no permission to write", hint="choose another folder") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{where}: the disk is full", hint=after_full) from error
        if isinstance(error, NotADirectoryError):
            raise OutputError(f"{where}: a part of this path is a file, not a folder", hint="choose another") from error
        if error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"{where}: a name in this path is too long", hint="choose a shorter one") from error
        if isinstance(error, FileNotFoundError):
            raise OutputError(
                f"{error.filename or where} does not exist any more", hint="was it removed meanwhile? start again"
            ) from error
        if error.errno == errno.EROFS:
            raise OutputError(f"{where}: the file system is read-only", hint="choose another folder") from error
        raise
