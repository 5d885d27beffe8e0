"""The user's cache of what is made at run time: machine code, the native call, tables of measured times.

Code from it is run, so a folder or file that anybody else may write to is not used. Without a folder everything works,
only nothing is kept: each reason is logged once.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none, and no NVIDIA GPUs that we support
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("slidesparse")
NAME = "slidesparse"
FOR_OTHERS = stat.S_IWGRP | stat.S_IWOTH
DIGEST_BYTES = hashlib.sha256().digest_size


def path() -> Path:
    """Where the cache is, usable or not: slidesparse in XDG_CACHE_HOME, or in ~/.cache."""
    above = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(above) if above else Path.home() / ".cache") / NAME
    except RuntimeError:  # a user without a home, as in some containers: a place where no folder can be
        return Path(os.devnull) / NAME


def fault(folder: Path) -> str:
    """Why a folder is not used, with the way out; "" if it is. Makes the folder if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = folder.resolve(strict=True)
        found = real.stat()
        if found.st_uid != _user():
            return "it belongs to another user (set XDG_CACHE_HOME)"
        if found.st_mode & FOR_OTHERS:
            return f"others may write to it (chmod go-w {real})"
        for above in real.parents:
            mode = above.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return f"others may write to {above} (set XDG_CACHE_HOME)"
    except OSError as error:
        return f"it cannot be used: {_reason(error)} (set XDG_CACHE_HOME)"
    return ""


def folder() -> Path | None:
    """The folder, made and checked; None, with a line in the log, where there is none to use."""
    wanted = path()
    if reason := _fault(wanted):
        say_once(f"nothing is cached in {wanted}: {reason}")
        return None
    return wanted


@cache
def _fault(wanted: Path) -> str:
    return fault(wanted)


def trusted(name: str) -> Path | None:
    """The path of a file in the folder that nobody else may write to; None if there is none."""
    where = folder()
    if where is None:
        return None
    try:
        found = (where / name).lstat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_uid != _user() or found.st_mode & FOR_OTHERS:
        say_once(f"{where / name} is not used: it is not a plain file that you alone may write to (delete it)")
        return None
    return where / name


def read(name: str) -> bytes | None:
    """The bytes of a trusted file; None if there is none."""
    found = trusted(name)
    try:
        return found.read_bytes() if found else None
    except OSError:
        return None


def read_code(name: str) -> bytes | None:
    """The bytes of a trusted file that `write_code` wrote; None if there is none, or it is damaged."""
    found = read(name)
    if found is None:
        return None
    code, digest = found[:-DIGEST_BYTES], found[-DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        say_once(f"{path() / name} is damaged, and made anew")
        return None
    return code


def write_code(name: str, code: bytes) -> Path | None:
    """`write` machine code, with its hash behind it: a loader of shared libraries does not read that far."""
    return write(name, code + hashlib.sha256(code).digest())


def write(name: str, data: bytes) -> Path | None:
    """Put a file in its place at once and for good, or not at all; None, with a line in the log, if that fails."""
    where = folder()
    if where is None:
        return None
    beside = where / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(where / name)
        _sync(where)
    except OSError as error:
        beside.unlink(missing_ok=True)
        say_once(f"nothing is cached in {where}: {_reason(error)}")
        return None
    return where / name


def _sync(where: Path) -> None:
    """So that the name survives a loss of power as well."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(where, os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Alone among the processes of this user that ask for `name`; at once where there is no folder to lock in."""
    where = folder()
    try:
        opened = os.open(where / f".{name}.lock", os.O_CREAT | os.O_RDWR, 0o600) if where and fcntl else None
    except OSError:
        opened = None  # not writable: nothing will be written either
    try:
        if opened is not None:
            with suppress(OSError):  # some network file systems have no locks: two writers may lose times, no more
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        if opened is not None:
            os.close(opened)


@cache
def private() -> Path:
    """A folder of this process for files that must be somewhere, deleted at its end."""
    made = tempfile.mkdtemp(prefix=f"{NAME}-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@cache
def say_once(message: str) -> None:
    """A warning in the log, the first time in this process."""
    logger.warning(message)


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
