"""Tables of measured times on disk, and the folder that they and our machine code are kept in."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from slideconvert.kernels import autotune, cache, sources
from slideconvert.kernels.backends import native, table
from slideconvert.kernels.backends.rule import BUCKETS
from slideconvert.kernels.backends.table import Key, Table, parse, save, table_of

KEY = Key("Some GPU", "9.0", "vllm", "2.11.0+cu130", "3.6.0", "0.8.0", "0.24.0")
LINEAR = "64x96 int8 2:8"

GOLDEN = """{
 "schema": 2,
 "key": {"gpu": "Some GPU", "capability": "9.0", "host": "vllm", \
"torch": "2.11.0+cu130", "triton": "3.6.0", "cusparselt": "0.8.0", "vllm": "0.24.0"},
 "times": {
  "64x96 int8 2:8": {
   "cusparselt": {"1": 4.25, "16384": null},
   "stock": {"1": 3.0, "2": 3.13}
  }
 },
 "choices": {
  "a sparse 64 x 160 product, int8 to int32": {"0": 3, "14": 0}
 }
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, not made yet; nothing is remembered of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    return tmp_path / "slidesparse"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_TABLES", {})
    monkeypatch.setattr(autotune, "_CHOSEN", {})
    for function in (cache._fault, cache.say_once, cache.private, native.entry):
        function.cache_clear()


def example() -> Table:
    made = Table(KEY, choices={"a sparse 64 x 160 product, int8 to int32": {14: 0, 0: 3}})
    for way, bucket, taken in (("stock", 2, 3.126), ("stock", 1, 3.0), ("cusparselt", 16384, None)):
        made.put(LINEAR, way, bucket, taken)
    made.put(LINEAR, "cusparselt", 1, 4.25)
    return made


def test_the_bytes_of_a_table() -> None:
    assert example().text() == GOLDEN
    again = parse(GOLDEN.encode())
    assert again == example() and again.text() == GOLDEN
    assert parse(Table(KEY).text().encode()) == Table(KEY)
    assert KEY.file == "times-645effd578f89794.json"


def test_a_table_is_found_again_with_what_autotuning_chose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(example())
    assert path == folder / KEY.file and path.read_text() == GOLDEN
    assert path.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    forget(monkeypatch)
    assert table_of(KEY).of(LINEAR)["stock"] == {1: 3.0, 2: 3.13}
    assert autotune.learned("Some GPU") == {"a sparse 64 x 160 product, int8 to int32": {0: 3, 14: 0}}
    assert table_of(replace(KEY, triton="3.7.0")).of(LINEAR) == {}
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


DAMAGE: dict[str, Any] = {
    "cut": GOLDEN[: len(GOLDEN) // 2],
    "empty": "",
    "no JSON": "\x00\xff",
    "a list": "[]",
    "another schema": GOLDEN.replace('"schema": 2', '"schema": 1'),
    "another GPU": GOLDEN.replace("Some GPU", "Another GPU"),
    "a negative time": GOLDEN.replace("4.25", "-4.25"),
    "no number": GOLDEN.replace("4.25", '"fast"'),
    "not finite": GOLDEN.replace("4.25", "Infinity"),
    "an unknown bucket": GOLDEN.replace('"2": 3.13', '"3": 3.13'),
    "a wild choice": GOLDEN.replace('"0": 3', '"0": -3'),
    "another key": GOLDEN.replace('"gpu"', '"gpus"'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_foreign_tables_are_ignored_with_one_line_and_written_anew(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o700)
    (folder / KEY.file).write_text(DAMAGE[kind], encoding="latin-1")
    (folder / KEY.file).chmod(0o600)
    found = table_of(KEY)
    assert not found.times and not found.choices
    found.put(LINEAR, "stock", 1, 2.0)
    save(found)
    assert parse((folder / KEY.file).read_bytes()).times == {LINEAR: {"stock": {1: 2.0}}}
    assert len(caplog.records) == 1 and f"{KEY.file} is ignored, it" in caplog.text


WRITER = """
import sys
from slideconvert.kernels.backends.table import Key, Table, save
from slideconvert.kernels.backends.rule import BUCKETS
key, way = Key(**eval(sys.argv[1])), sys.argv[2]
for bucket in BUCKETS:
    made = Table(key)
    made.put("a", way, bucket, 1.0)
    save(made)
"""


def test_writers_at_the_same_time_keep_each_others_times(folder: Path) -> None:
    """Two processes that write one time after another into one table."""
    words = [sys.executable, "-c", WRITER, str(asdict(KEY))]
    writers = [subprocess.Popen([*words, way], env={**os.environ}) for way in ("first", "second")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    times = parse((folder / KEY.file).read_bytes()).times["a"]
    assert times == {way: dict.fromkeys(BUCKETS, 1.0) for way in ("first", "second")}
    assert {path.name for path in folder.iterdir()} == {KEY.file, f".{KEY.file}.lock"}


def test_tables_that_were_shipped_lie_beneath_the_users_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For other patch versions too; not for other GPUs or minor versions."""
    monkeypatch.setattr(table, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "some-gpu.json").write_text(GOLDEN)
    (tmp_path / "shipped" / "damaged.json").write_text("{")
    patched = replace(KEY, torch="2.11.1", vllm="0.24.2", triton="3.6.1")
    found = table_of(patched)
    assert found.of(LINEAR)["stock"] == {1: 3.0, 2: 3.13} and not found.times
    assert autotune.learned("Some GPU") == parse(GOLDEN.encode()).choices
    found.put(LINEAR, "stock", 2, 9.0)
    assert found.of(LINEAR)["stock"] == {1: 3.0, 2: 9.0}
    save(found)
    assert parse((folder / patched.file).read_bytes()).times == {LINEAR: {"stock": {2: 9.0}}}
    for other in ({"gpu": "Another"}, {"torch": "2.12.0"}, {"vllm": "0.25.0"}, {"host": "x"}):
        assert table_of(replace(KEY, **other)).of(LINEAR) == {}, other
    assert "damaged.json is ignored" in caplog.text


def test_the_shipped_tables_are_sound() -> None:
    for path in table.SHIPPED.glob("*.json"):
        assert parse(path.read_bytes()).text().encode() == path.read_bytes(), path


# ---- the folder


def test_nothing_is_read_from_a_folder_that_others_may_write_to(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(example())
    for mode in (0o770, 0o702, 0o777):
        folder.chmod(mode)
        cache._fault.cache_clear()
        assert cache.read(KEY.file) is None and save(example()) is None
        assert f"others may write to it (chmod go-w {folder})" in caplog.text
    assert len(caplog.records) == 1
    folder.chmod(0o700)
    cache._fault.cache_clear()
    assert cache.read(KEY.file) == GOLDEN.encode()


def test_nor_from_one_that_can_be_replaced(folder: Path, tmp_path: Path) -> None:
    save(example())
    tmp_path.chmod(0o777)
    assert f"others may write to {tmp_path}" in cache.fault(folder)
    tmp_path.chmod(0o1777)
    assert cache.fault(folder) == ""
    tmp_path.chmod(0o700)


def test_nor_from_one_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(example())
    monkeypatch.setattr(cache, "_user", lambda: os.geteuid() + 1)
    assert "belongs to another user (set XDG_CACHE_HOME)" in cache.fault(folder)


def test_nor_a_file_that_others_may_write_to_or_that_is_a_link(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(example())
    (folder / KEY.file).chmod(0o620)
    assert cache.read(KEY.file) is None
    (folder / "link").symlink_to(folder / KEY.file)
    assert cache.read("link") is None
    assert len(caplog.records) == 2 and "you alone may write to (delete it)" in caplog.text


def test_a_folder_that_cannot_be_made_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What must lie somewhere then lies in a folder of the process alone: the native call is built all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = table_of(KEY)
    made.put(LINEAR, "stock", 1, 2.0)
    assert save(made) is None and save(made) is None and table_of(KEY).of(LINEAR)["stock"] == {1: 2.0}
    built = native._built()
    assert built.is_file() and built.parent.stat().st_mode & 0o777 == 0o700
    assert len(caplog.records) == 1 and "Not a directory (set XDG_CACHE_HOME)" in caplog.text


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert cache.folder() is None and cache.read("anything") is None and cache.write("anything", b"") is None
    assert len(caplog.records) == 1 and "set XDG_CACHE_HOME" in caplog.text


def test_where_files_cannot_be_locked_they_are_written_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", unsupported)
    save(example())
    assert (folder / KEY.file).read_text() == GOLDEN


def test_a_full_disk_loses_nothing_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(example())
    before = {path.name for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    made = table_of(KEY)
    made.put(LINEAR, "stock", 1, 9.0)
    assert save(made) is None and (folder / KEY.file).read_text() == GOLDEN
    assert {path.name for path in folder.iterdir()} == before and "No space left on device" in caplog.text


def test_machine_code_is_not_taken_from_a_folder_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    from slideconvert.kernels import nvrtc

    monkeypatch.setattr(nvrtc, "_version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "_compiled", lambda *_, **__: b"compiled")
    source = Path(nvrtc.__file__).parent / "group_gemm" / "kernel.cu"
    assert nvrtc.machine_code(source, {}, "sm_90") == b"compiled"
    [kept] = folder.glob("group_gemm-*.cubin")
    cache.write_code(kept.name, b"kept")
    assert nvrtc.machine_code(source, {}, "sm_90") == b"kept"
    kept.chmod(0o666)
    assert nvrtc.machine_code(source, {}, "sm_90") == b"compiled"
    kept.chmod(0o600)
    folder.chmod(0o777)
    cache._fault.cache_clear()
    cache.write_code(kept.name, b"planted")
    assert nvrtc.machine_code(source, {}, "sm_90") == b"compiled"
    folder.chmod(0o700)


@pytest.mark.parametrize("damage", ["a bit", "its end", "all"])
def test_damaged_machine_code_is_made_anew(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of kernels and of the native call: it would run."""
    from slideconvert.kernels import nvrtc

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= damage == "a bit"
        path.write_bytes({"its end": data[:-1], "all": b""}.get(damage, data))

    monkeypatch.setattr(nvrtc, "_version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "_compiled", lambda *_, **__: b"compiled")
    source = Path(nvrtc.__file__).parent / "group_gemm" / "kernel.cu"
    assert nvrtc.machine_code(source, {}, "sm_90") == b"compiled"
    built = native._built()
    before = {path: path.read_bytes() for path in (*folder.glob("*.cubin"), built)}
    copy = folder / "loaded"  # whose bytes stay: what is loaded must not change, or the process ends with a fault
    copy.write_bytes(built.read_bytes())
    assert len(before) == 2 and ctypes.CDLL(str(copy)).slidesparse_linear
    for path in before:
        spoil(path)
    assert nvrtc.machine_code(source, {}, "sm_90") == b"compiled" and native._built() == built
    assert sum("is damaged, and made anew" in line for line in caplog.messages) == 2
    assert {path: path.read_bytes()[:-32] for path in before} == {path: data[:-32] for path, data in before.items()}


def test_times_are_kept_by_the_sources_of_their_kernels_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def digest() -> str:
        sources.digest.cache_clear()
        return sources.digest("few", "backends/native.c")

    monkeypatch.setattr(sources, "ROOT", tmp_path)
    depends = ("few/kernel.cu", "few/division.py", "backends/native.c")
    others = ("few/reference.py", "few/test_few.py", "backends/choose.py", "many/kernel.cu", "linear.py")
    for name in (*depends, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    found = [digest()]
    for name in others:
        (tmp_path / name).write_text("two")
        assert digest() == found[0], name
    for name in depends:
        (tmp_path / name).write_text("two")
        found.append(digest())
    assert len(set(found)) == 4
    sources.digest.cache_clear()


def test_every_way_names_sources_that_exist() -> None:
    """Stock ways call nothing of ours; a name that is misspelt would be the hash of nothing."""
    from slideconvert.kernels.backends.choose import BACKENDS

    for kind in BACKENDS:
        assert all((sources.ROOT / operation).exists() for operation in kind.operations), kind.name
        assert bool(kind.operations) == ("reference" not in kind.name), kind.name


def test_autotuning_is_bounded_and_refuses_to_time_what_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of tokens first met during capture takes what is best for the nearest that is known."""
    import torch

    from slideconvert.kernels.autotune import Autotuner

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    timed: list[int] = []
    monkeypatch.setattr(Autotuner, "_affordable", lambda self, octave: octave)
    monkeypatch.setattr(Autotuner, "_time_all", lambda self, found: timed.append(*found) or timed[-1])
    tuner = Autotuner("something", "dense_gemm", 1, torch.device("cuda", 0))
    assert tuner.choose(5, lambda tokens: [tokens]) == 8 and tuner.choose(8, lambda tokens: [tokens]) == 8
    assert tuner.choose(10**6, lambda tokens: [tokens]) == 16384 == tuner.choose(16384, lambda tokens: [tokens])
    monkeypatch.setattr(autotune, "may_time", lambda: False)
    assert tuner.choose(100, lambda tokens: [tokens]) == 8 and tuner.choose(4000, lambda tokens: [tokens]) == 16384
    with pytest.raises(RuntimeError, match="run the model once before"):
        Autotuner("something else", "dense_gemm", 1, torch.device("cuda", 0)).choose(1, lambda tokens: [tokens])
    assert timed == [8, 16384]
    assert json.loads(json.dumps(autotune.learned("Some GPU"))) == {
        sources.versioned("something", "dense_gemm"): {"3": 8, "14": 16384}
    }
