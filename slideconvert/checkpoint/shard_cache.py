"""A shard store that keeps a few weight files on disk: it fetches a file when it is read, and evicts another one.

    idle        on disk and not open; the least recently read file is evicted first
    in use      on disk and open: never evicted
    fetching    one thread fetches it, and other readers wait
    leftover    from an interrupted run: `fetch` checks it like a missing file

The number of files never exceeds the capacity. A reader closes its file before it opens another one, so every waiting
thread proceeds eventually.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

FetchFile = Callable[[str], int]
"""Fetch the file of that name into the folder and check it; returns the number of bytes fetched."""

CAPACITY = 3
"""Weight files on disk at a time: layers span one or two, and the tensors outside the layers are often in the last."""


class ShardCache:
    """A ShardStore in `folder`, which `fetch` fills. It deletes only files that `sizes` names.

    sizes: bytes of each weight file, by name. fetched: bytes fetched so far. deleted: files evicted.
    """

    known_by: str = "weights"

    def __init__(self, folder: Path, sizes: Mapping[str, int], fetch: FetchFile, capacity: int = CAPACITY) -> None:
        self.folder, self.capacity, self.fetched, self.deleted = folder, capacity, 0, 0
        self._sizes, self._fetch = dict(sizes), fetch
        self._turn = threading.Condition()
        self._idle: dict[str, None] = {}  # in the order in which they were read
        self._in_use: Counter[str] = Counter()
        self._fetching: set[str] = set()
        self._leftover = [name for name in sorted(sizes) if (folder / name).is_file()]
        self._failure: BaseException | None = None

    @property
    def disk_use(self) -> tuple[Path, int]:
        """The folder, and the most bytes of its files at a time."""
        return self.folder, sum(sorted(self._sizes.values())[-self.capacity :])

    def identity(self, file: Path) -> list[object]:
        return [self._sizes[file.name]]

    @contextmanager
    def open_shard(self, file: Path) -> Iterator[FileIO]:
        """A weight file, open for reading inside the block. Raises what `fetch` does, and then again at every call."""
        self._acquire(file.name)
        try:
            with (self.folder / file.name).open("rb", buffering=0) as opened:
                yield opened
        finally:
            self._release(file.name)

    def _acquire(self, name: str) -> None:
        """Fetch the file if it is missing, and protect it from eviction."""
        with self._turn:
            while name not in self._in_use and name not in self._idle:
                if self._failure:
                    raise self._failure
                if name not in self._fetching and self._make_space(name):
                    self._fetching.add(name)
                    break
                self._turn.wait()
            else:
                self._idle.pop(name, None)
                self._in_use[name] += 1
                return
        failure: BaseException | None = None
        fetched = 0
        try:
            fetched = self._fetch(name)
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._turn:
                self._fetching.discard(name)
                self._failure = self._failure or failure
                self.fetched += fetched
                if failure is None:
                    self._in_use[name] += 1
                self._turn.notify_all()

    def _release(self, name: str) -> None:
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
        while len(self._idle) + len(self._in_use) + len(self._fetching) + len(self._leftover) >= self.capacity:
            if self._leftover:
                evicted = self._leftover.pop(0)  # the first by name: a resumed run starts after it
            elif self._idle:
                evicted = next(iter(self._idle))
                del self._idle[evicted]
            else:
                return False
            with suppress(FileNotFoundError):
                (self.folder / evicted).unlink()
            self.deleted += 1
        return True
