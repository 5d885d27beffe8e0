"""The claim of a process on its output folder, so that two processes never write to one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .. import ranks
from ..errors import InputError, OutputError
from .lock import holder, lock
from .staging import writing

ATTEMPTS = 100
"""Times that another process may remove the folder, which it made and did not use, before it is locked."""

WITHOUT_LOCKS = "The file system of the output has no locks: nothing kept other processes from writing to its folder."


@dataclass(frozen=True)
class Claim:
    """A folder that only this process writes to. identity: device and inode. locked: False on a file system without
    locks, where nothing keeps others away."""

    path: Path
    identity: tuple[int, int]
    locked: bool

    @property
    def notes(self) -> list[str]:
        """What the report says about the claim."""
        return [] if self.locked else [WITHOUT_LOCKS]

    @property
    def holds(self) -> bool:
        """Whether the path still leads to the claimed folder."""
        return _identity(self.path) == self.identity

    def check(self) -> None:
        """OutputError if the folder was removed or replaced since it was claimed."""
        if not self.holds:
            what = "replaced" if self.path.exists() else "removed"
            raise OutputError(
                f"{self.path} was {what} while this process was writing to it", hint="start the conversion again"
            )


@contextmanager
def claimed(out: Path | Claim) -> Iterator[Claim]:
    """Claim the folder `out` for the block, making it if it is missing; a claim that the caller holds passes as it is.

    A folder that was made here and is empty at the end is removed, as are its parents. The claim ends with the process,
    however that dies. InputError if another process holds the folder, or `out` is no folder; OutputError if it cannot
    be made. Of several ranks, the first claims it for all.
    """
    if isinstance(out, Claim):
        yield out
        return
    if not ranks.first():
        ranks.gate()
        claim = _claim_of_first(out)
        ranks.gate()
        yield claim
        return
    made: list[Path] = []
    descriptor, locked = _open_locked(out, made)
    try:
        status = os.fstat(descriptor)
        claim = Claim(out, (status.st_dev, status.st_ino), locked)
        try:
            ranks.gate()
            ranks.gate()  # the others have seen the folder, which may go as soon as anything fails
            yield claim
        finally:
            if claim.holds:
                with suppress(OSError):  # a folder that is not empty stays, and so do those above it
                    for folder in reversed(made):
                        folder.rmdir()
    finally:
        os.close(descriptor)


def _claim_of_first(out: Path) -> Claim:
    """Rank 0's claim as another rank sees it. InputError if it does not see the folder."""
    identity = _identity(out)
    if identity is None:
        raise InputError(
            f"{out}: {socket.gethostname()} does not see the folder that rank 0 writes to",
            hint="name a folder on a file system that all hosts share",
        )
    return Claim(out, identity, locked=True)


def _open_locked(out: Path, made: list[Path]) -> tuple[int, bool]:
    """A descriptor of the folder `out`, and whether it is locked. Appends the folders that it makes to `made`."""
    for _ in range(ATTEMPTS):
        with writing(out):
            _refuse_others(out)
            try:
                _make(out, made)
                descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # removed by a process that had made it
        try:
            locked = lock(descriptor)
            status = os.fstat(descriptor)
            if _identity(out) == (status.st_dev, status.st_ino):
                return descriptor, locked
        except BlockingIOError as error:
            who = holder(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{out}: {who} is writing to this folder", hint="wait until it ends, or name another folder"
            ) from error
        os.close(descriptor)
    raise OutputError(f"{out}: other processes keep removing this folder", hint="choose another folder")


def _refuse_others(out: Path) -> None:
    """InputError if `out` is a file, or if it or a folder above it is a link that leads nowhere."""
    for path in (out, *out.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{path} is a link to {path.readlink()}, which does not exist", hint="remove it, or name another folder"
            )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not an empty folder", hint="name a new folder")


def _make(out: Path, made: list[Path]) -> None:
    """Make the folder and those above it that are missing."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            path.mkdir()
            made.append(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
