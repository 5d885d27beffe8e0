"""Downloads that break, bring wrong bytes or do not fit: a clear sentence, and the next run succeeds."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest

from slideconvert.errors import TRY_AGAIN, HubError, InputError
from slideconvert.hub.errors import hub_errors
from slideconvert.hub.snapshot import RECORD, UNFINISHED
from slideconvert.hub.source import download, resolve
from tests.helpers.hub_models import MODEL, WEIGHTS, sentence
from tests.helpers.hub_repo import Fault, blob_sha1, sha256
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_fixtures"]

SHARD = min(WEIGHTS)


# ---- transfers that break


def test_broken_off_file_is_resumed_where_it_broke(hub: HubServer, waits: list[float]) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault(SHARD, times=2, drop_after=2000))
    snapshot = resolve("org/model")
    assert (snapshot.path / SHARD).read_bytes() == WEIGHTS[SHARD]
    # 2000 bytes arrived, of which three chunks of 512 count; then 2000 more, from there.
    assert [r.range for r in hub.requests_for(SHARD)] == [None, "bytes=1536-", "bytes=3072-"]
    assert waits == [1, 1]


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_download_resumes_in_the_next_run(hub: HubServer, tmp_path: Path, reset: bool) -> None:
    commit = hub.add_repo("org/model", MODEL)
    folder = tmp_path / "model"
    hub.faults.append(Fault(SHARD, times=99, drop_after=0, reset=reset))
    with pytest.raises(HubError) as error:
        download("org/model", folder)
    assert "org/model: the download was interrupted" in sentence(error, TRY_AGAIN)
    assert (folder / UNFINISHED).exists() and not (folder / RECORD).exists()
    with pytest.raises(InputError, match=f"unfinished.*slideconvert download org/model .*--revision {commit}"):
        resolve(str(folder))

    hub.faults.clear()
    hub.requests.clear()
    assert download("org/model", folder).revision == resolve(str(folder)).revision == commit
    assert (folder / SHARD).read_bytes() == WEIGHTS[SHARD]
    assert not hub.requests_for("config.json", "HEAD")  # finished files are kept


def test_killed_download_is_refused_and_completed(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault(max(WEIGHTS), drop_after=3000, stall=True))
    folder = tmp_path / "model"
    code = f"import pathlib; from slideconvert.hub.source import download; download('org/model', pathlib.{folder!r})"
    command = [sys.executable, "-c", code]
    env = {"HF_ENDPOINT": hub.url, "NO_PROXY": "*", "HF_HOME": str(cache.parent), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(command, env=env, cwd=Path(__file__).parents[2]) as process:
        assert hub.stalled.wait(timeout=60)
        process.kill()
    assert list(folder.glob(".cache/**/*.incomplete"))
    with pytest.raises(InputError, match="download of org/model is unfinished"):
        resolve(str(folder))
    download("org/model", folder)
    assert not list(folder.glob(".cache/**/*.incomplete"))  # the killed process left one behind: gigabytes, in life


# ---- wrong bytes


@pytest.mark.parametrize("where", ["cache", "folder"])
@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_damaged_file_is_named_and_deleted(hub: HubServer, cache: Path, tmp_path: Path, name: str, where: str) -> None:
    hub.add_repo("org/model", MODEL)
    good = MODEL[name]
    bad = bytes([good[0] ^ 1]) + good[1:]
    hub.faults.append(Fault(name, body=bad))
    directory = tmp_path / "model" if where == "folder" else None
    with pytest.raises(HubError) as error:
        download("org/model", directory)
    digest = sha256 if name == SHARD else blob_sha1
    words = sentence(error, TRY_AGAIN)
    assert (
        f"{name} is damaged: expected {len(good):,} bytes" in words and digest(good) in words and digest(bad) in words
    )
    left = [path for path in tmp_path.rglob("*") if path.is_symlink() or (path.is_file() and path.read_bytes() == bad)]
    assert not [path for path in left if path.name == name or not path.is_symlink()]

    snapshot = download("org/model", directory)
    assert (snapshot.path / name).read_bytes() == good


def test_folder_is_not_filled_from_a_damaged_cache_for_ever(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/model", MODEL)
    blob = (resolve("org/model").path / SHARD).resolve()
    blob.write_bytes(b"x" * len(WEIGHTS[SHARD]))
    with pytest.raises(HubError, match=f"{SHARD} is damaged"):
        download("org/model", tmp_path / "model")
    assert not blob.exists()
    assert (download("org/model", tmp_path / "model").path / SHARD).read_bytes() == WEIGHTS[SHARD]


def test_a_changed_snapshot_in_the_cache_is_repaired(hub: HubServer) -> None:
    hub.add_repo("org/model", MODEL)
    path = resolve("org/model").path / SHARD
    path.unlink()
    assert resolve("org/model") and path.read_bytes() == WEIGHTS[SHARD]
    path.write_bytes(WEIGHTS[SHARD][:-1])
    with pytest.raises(InputError, match=f"{SHARD} has 10,239 bytes, not 10,240 .*slideconvert download org/model"):
        resolve(str(path.parent))
    with pytest.raises(HubError, match=f"{SHARD} is damaged"):
        resolve("org/model")
    assert resolve("org/model") and path.read_bytes() == WEIGHTS[SHARD]


def test_files_that_others_left_in_the_cache_are_checked(hub: HubServer) -> None:
    commit = hub.add_repo("org/model", MODEL)
    path = Path(huggingface_hub.hf_hub_download("org/model", SHARD, revision=commit, endpoint=hub.url))
    path.resolve().write_bytes(b"x" * len(WEIGHTS[SHARD]))
    with pytest.raises(HubError, match=f"{SHARD} is damaged"):
        resolve("org/model")
    assert not path.is_symlink()


# ---- the disk


def test_disk_too_small(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/model", MODEL)
    usage = namedtuple("usage", "free")
    size = sum(map(len, MODEL.values()))
    for where in (None, tmp_path / "model"):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size - 1))
        with pytest.raises(InputError) as error:
            download("org/model", where)
        words = sentence(error, TRY_AGAIN)
        assert "org/model needs 0.00 GB more, and " in words and "GB free" in words
        assert not [r for r in hub.requests if not r.path.startswith("/api/")]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size))
    resolve("org/model")
    hub.add_repo("org/model", MODEL | {"README.md": b"# Better"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8))
    assert (resolve("org/model").path / "README.md").read_bytes() == b"# Better"  # the weights are there already


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "blobs/1"), "the disk is full at blobs/1", TRY_AGAIN),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full", TRY_AGAIN),
        (OSError(errno.EROFS, "Read-only file system", "blobs"), "cannot write at blobs", 2),
        (
            OSError("Consistency check failed: file should be of size 9 but has size 8"),
            "the download was interrupted",
            TRY_AGAIN,
        ),
        (OSError("I/O error: No space left on device (os error 28)"), "the disk is full", TRY_AGAIN),
        (
            RuntimeError("Task error: File reconstruction error: CAS Client Error: x"),
            "the download was interrupted",
            TRY_AGAIN,
        ),
        (ConnectionError("Network error: error sending request"), "HF_HUB_DISABLE_XET=1", TRY_AGAIN),
        (PermissionError("Authentication error: token expired"), "storage refuses the token", 2),
        (ValueError("The file is too large to be downloaded using the regular download method."), "over 50 GB", 2),
    ],
)
def test_errors_of_disk_and_xet(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, code: int
) -> None:
    """What a loopback cannot produce: raised where huggingface_hub raises it."""
    hub.add_repo("org/model", MODEL)

    def fails(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(HubError) as raised:
        resolve("org/model")
    assert words in sentence(raised, code) and raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RuntimeError("a defect"), ValueError("a defect"), FileNotFoundError(2, "gone"), OSError("?")],
)
def test_unknown_errors_surface(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, hub_errors("org/model"):
        raise error
    assert raised.value is error


def test_cache_that_may_only_be_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_repo("org/model", MODEL)
    for name in MODEL:
        huggingface_hub.hf_hub_download("org/model", name, revision=commit, endpoint=hub.url)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("slideconvert.hub.snapshot.write_whole", read_only)
    monkeypatch.setattr("slideconvert.hub.download.write_whole", read_only)
    assert resolve("org/model").revision == commit
