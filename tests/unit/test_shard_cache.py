"""A shard cache with room for a few files: never more of them, none taken from under a reader, none fetched in vain."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slideconvert.checkpoint.shard_cache import ShardCache

NAMES = [f"{letter}.safetensors" for letter in "abcdefgh"]
SIZES = {name: 100 + number for number, name in enumerate(NAMES)}


class Source:
    """Brings files by writing them; counts them, and how many lie there at most."""

    def __init__(self, folder: Path, room: int, *, sizes: dict[str, int] = SIZES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.brought: list[str] = []
        self.most = 0
        self.folder = folder
        self.fail = ""
        self.shard_store = ShardCache(folder, sizes, self.bring, room)

    def bring(self, name: str) -> int:
        if name == self.fail:
            raise ValueError(name)
        self.brought.append(name)
        with (self.folder / name).open("wb") as file:
            file.write(name.encode() * 10)
            self.most = max(self.most, len(list(self.folder.iterdir())))
        return SIZES[name]

    def read(self, name: str) -> bytes:
        with self.shard_store.open_shard(Path("elsewhere") / name) as file:
            return file.read()


def test_the_one_read_longest_ago_makes_way(tmp_path: Path) -> None:
    source = Source(tmp_path / "shard_store", 2)
    for name in (*NAMES[:2], NAMES[0], NAMES[2]):
        assert source.read(name) == name.encode() * 10
    assert source.brought == NAMES[:3]
    assert sorted(path.name for path in source.folder.iterdir()) == [NAMES[0], NAMES[2]]
    assert source.read(NAMES[1]) and source.brought[-1] == NAMES[1]
    assert source.shard_store.fetched == 100 + 101 + 102 + 101 and source.shard_store.deleted == 2
    assert source.shard_store.disk_use == (source.folder, 106 + 107)


def test_a_file_that_is_read_stays_and_others_wait(tmp_path: Path) -> None:
    source = Source(tmp_path / "shard_store", 1)
    begun, done = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as other:
        with source.shard_store.open_shard(Path(NAMES[0])) as file:
            read = other.submit(lambda: (begun.set(), source.read(NAMES[1]), done.set()))
            assert begun.wait(60)
            with source.shard_store.open_shard(Path(NAMES[0])) as again:  # the same file, once more, needs no room
                assert again.read() == file.read()
            assert not done.is_set() and (source.folder / NAMES[0]).exists()
        read.result(60)
    assert source.brought == NAMES[:2] and source.most == 1
    assert [path.name for path in source.folder.iterdir()] == [NAMES[1]]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_many_readers(tmp_path: Path, room: int) -> None:
    source = Source(tmp_path / "shard_store", room)

    def reads(seed: int) -> None:
        names = random.Random(seed).choices(NAMES, k=60)
        assert all(source.read(name) == name.encode() * 10 for name in names)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8), timeout=60))
    assert source.most <= room and len(list(source.folder.iterdir())) <= room
    assert len(source.brought) == source.shard_store.deleted + len(list(source.folder.iterdir()))


def test_one_that_is_coming_is_fetched_once(tmp_path: Path) -> None:
    source = Source(tmp_path / "shard_store", 3)
    arrived, real = threading.Barrier(2), source.bring

    def slowly(name: str) -> int:
        arrived.wait(60)  # until the other thread is about to ask for the same
        return real(name)

    source.shard_store._fetch = slowly
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.read, NAMES[0])
        second = pool.submit(lambda: (arrived.wait(60), source.read(NAMES[0]))[1])
        assert first.result(60) == second.result(60)
    assert source.brought == [NAMES[0]]


def test_after_a_failure_nobody_asks_again(tmp_path: Path) -> None:
    source = Source(tmp_path / "shard_store", 2)
    source.read(NAMES[0])
    source.fail = NAMES[1]
    for name in NAMES[1:3]:
        with pytest.raises(ValueError, match=NAMES[1]):
            source.read(name)
    assert source.read(NAMES[0])  # what is there can be read
    assert source.brought == NAMES[:1]


def test_leftovers_count_and_go_first(tmp_path: Path) -> None:
    folder = tmp_path / "shard_store"
    folder.mkdir()
    for name in (*NAMES[:3], "mine.txt"):
        (folder / name).write_bytes(b"left")
    source = Source(folder, 2)
    assert source.read(NAMES[0]) == NAMES[0].encode() * 10  # brought again, in its own place
    source.read(NAMES[5])
    assert sorted(path.name for path in folder.iterdir()) == [NAMES[0], NAMES[5], "mine.txt"]
