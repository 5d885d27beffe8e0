"""A shard store that keeps a few weight files on disk: it fetches each when it is read, and evicts others for it.

    idle        on disk and not open; the least recently read file is evicted first
    in use      on disk and open: never evicted
    coming      being fetched by one thread; other readers of it wait
    leftover    from an interrupted run: fetched again as if it were missing, which finds and checks it

Together they never exceed the capacity. A reader opens one file at a time and closes it before it opens the next, so
that every waiting thread gets its turn.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

Bring = Callable[[str], int]
"""Fetch the file of that name into the folder, whole and checked; returns the number of bytes fetched."""

CAPACITY = 3
"""Weight files on disk at a time: layers span one or two, and the tensors outside the layers are often in the last."""


class ShardCache:
    """A ShardStore over `folder`, in which `bring` puts files. Deletes only files that `sizes` names.

    sizes: bytes of each weight file, by name. fetched: bytes fetched so far. deleted: files evicted.
    """

    known_by: str = "weights"

    def __init__(self, folder: Path, sizes: Mapping[str, int], bring: Bring, capacity: int = CAPACITY) -> None:
        self.folder, self.capacity, self.fetched, self.deleted = folder, capacity, 0, 0
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
        return self.folder, sum(sorted(self._sizes.values())[-self.capacity :])

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
                if name not in self._coming and self._make_space(name):
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

    def _make_space(self, name: str) -> bool:
        """Whether there is space for the file; evicts another one if necessary."""
        if name in self._leftover:
            self._leftover.remove(name)  # counted already
            return True
        while len(self._idle) + len(self._in_use) + len(self._coming) + len(self._leftover) >= self.capacity:
            if self._leftover:
                evicted = self._leftover.pop(0)  # the first by name: a resumed run starts behind it
            elif self._idle:
                evicted = next(iter(self._idle))
                del self._idle[evicted]
            else:
                return False
            with suppress(FileNotFoundError):
                (self.folder / evicted).unlink()
            self.deleted += 1
        return True
