"""Locks on folders (`flock` on the folder itself), which end with the process that holds them and leave no file behind.

A process that writes to a folder holds its exclusive lock. Readers never wait: they probe with a shared lock and
release it at once. On file systems without locks, nobody else seems to write.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCKS = Path("/proc/locks")
"""Where Linux lists who holds which lock."""
PROBES = 1000
"""Times that a reader's probe may be in the way of a lock, each for microseconds."""


def lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open folder; False on a file system without locks.

    BlockingIOError if another process holds it.
    """
    for _ in range(PROBES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails too, unless only readers probe
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError:
            return False
    raise BlockingIOError


def writer_of(path: Path) -> str | None:
    """The process that holds the exclusive lock of a folder, in words; None if none does or nobody can know."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def holder(descriptor: int) -> str:
    """The process that holds the lock of an open folder, in words, with its pid where the system tells it."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        lines = []
    for _, kind, _, access, pid, where, *_ in (line.split() for line in lines if "->" not in line):
        if (kind, access, where) == ("FLOCK", "WRITE", wanted) and int(pid) > 0:
            return f"another process (pid {pid})"
    return "another process"
