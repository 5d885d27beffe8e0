"""A shard_store with room for a few weight files: each is brought when it is read, and makes way for the next ones.

    idle        there and read by nobody; the one that was read longest ago goes first
    lent        there and being read: stays
    coming      being brought by one thread; others that want it wait
    leftover    of an interrupted run: brought again as if it were not there, which finds it and checks it

Together they are never more than there is room for. A reader holds one file at a time and lets go of it before it
asks for the next, so that whoever waits for room gets it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

Bring = Callable[[str], int]
"""Bring the file of that name into the folder, whole and checked; gives the bytes that were fetched for it."""

ROOM = 3
"""Weight files at a time: readers are at one or two, and what lies outside the layers is often in the last."""


class ShardCache:
    """A ShardStore over `folder`, in which `bring` puts files. Deletes no files but those that have a name in `sizes`.

    sizes: bytes of each weight file, by name. fetched: bytes fetched so far. deleted: files that made way.
    """

    known_by: str = "weights"

    def __init__(self, folder: Path, sizes: Mapping[str, int], bring: Bring, room: int = ROOM) -> None:
        self.folder, self.room, self.fetched, self.deleted = folder, room, 0, 0
        self._sizes, self._bring = dict(sizes), bring
        self._turn = threading.Condition()
        self._idle: dict[str, None] = {}  # in the order in which they were read
        self._in_use: Counter[str] = Counter()
        self._coming: set[str] = set()
        self._leftover = [name for name in sorted(sizes) if (folder / name).is_file()]
        self._failure: BaseException | None = None

    @property
    def disk_use(self) -> tuple[Path, int]:
        """The folder, and the most bytes that its files will have at a time."""
        return self.folder, sum(sorted(self._sizes.values())[-self.room :])

    def identity(self, file: Path) -> list[object]:
        return [self._sizes[file.name]]

    @contextmanager
    def open_shard(self, file: Path) -> Iterator[FileIO]:
        """A weight file, open for reading inside the block. Raises what `bring` does; from then on, at every call."""
        self._take(file.name)
        try:
            with (self.folder / file.name).open("rb", buffering=0) as opened:
                yield opened
        finally:
            self._give_back(file.name)

    def _take(self, name: str) -> None:
        """Make sure that the file is there and stays."""
        with self._turn:
            while name not in self._in_use and name not in self._idle:
                if self._failure:
                    raise self._failure
                if name not in self._coming and self._make_room(name):
                    self._coming.add(name)
                    break
                self._turn.wait()
            else:
                self._idle.pop(name, None)
                self._in_use[name] += 1
                return
        failure: BaseException | None = None
        fetched = 0
        try:
            fetched = self._bring(name)
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._turn:
                self._coming.discard(name)
                self._failure = self._failure or failure
                self.fetched += fetched
                if failure is None:
                    self._in_use[name] += 1
                self._turn.notify_all()

    def _give_back(self, name: str) -> None:
        with self._turn:
            self._in_use[name] -= 1
            if not self._in_use[name]:
                del self._in_use[name]
                self._idle[name] = None
            self._turn.notify_all()

    def _make_room(self, name: str) -> bool:
        """Whether there is a place for the file, after an idle one was deleted for it if necessary."""
        if name in self._leftover:
            self._leftover.remove(name)  # it has a place already
            return True
        while len(self._idle) + len(self._in_use) + len(self._coming) + len(self._leftover) >= self.room:
            if self._leftover:
                gone = self._leftover.pop(0)  # the first in order of name: work goes on from there
            elif self._idle:
                gone = next(iter(self._idle))
                del self._idle[gone]
            else:
                return False
            with suppress(FileNotFoundError):
                (self.folder / gone).unlink()
            self.deleted += 1
        return True
