"""From what the user names to a pinned, checked folder: downloads that go well, and folders that lie there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from slideconvert.checkpoint.files import INDEX as INDEX_NAME
from slideconvert.checkpoint.files import companions
from slideconvert.checkpoint.snapshot import Snapshot
from slideconvert.errors import HubError, InputError
from slideconvert.hub.snapshot import RECORD, UNFINISHED
from slideconvert.hub.source import download, is_hub_id, list_files, resolve
from tests.helpers.hub_models import INDEX, MODEL, WEIGHTS
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_fixtures"]

SHARD = min(WEIGHTS)


def contents(folder: Path) -> dict[str, bytes]:
    """The visible files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


# ---- downloads


def test_into_the_cache(hub: HubServer, cache: Path) -> None:
    commit = hub.add_repo("org/model", MODEL)
    snapshot = resolve("org/model")
    assert snapshot == Snapshot(cache / "models--org--model" / "snapshots" / commit, "org/model", commit)
    assert contents(snapshot.path) == MODEL


def test_into_a_folder(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    commit = hub.add_repo("org/model", MODEL)
    folder = tmp_path / "new" / "model"
    assert download("org/model", folder) == Snapshot(folder, "org/model", commit)
    assert contents(folder) == MODEL
    assert not cache.exists()
    record = json.loads((folder / RECORD).read_text())
    assert (record["id"], record["revision"]) == ("org/model", commit)
    assert record["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in MODEL.items()
    }
    assert not (folder / UNFINISHED).exists()


def test_model_without_organisation_and_with_one_weight_file(hub: HubServer) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    commit = hub.add_repo("gpt2", files)
    snapshot = resolve("gpt2")
    assert (snapshot.id, snapshot.revision, contents(snapshot.path)) == ("gpt2", commit, files)


def test_a_branch_becomes_its_commit_in_every_request(hub: HubServer) -> None:
    old = hub.add_repo("org/model", MODEL, branch="refs/pr/1")
    new = hub.add_repo("org/model", MODEL | {"README.md": b"newer"})
    assert resolve("org/model", revision="refs/pr/1").revision == old
    files = [r.path for r in hub.requests if not r.path.startswith("/api/")]
    assert files and all(f"/{old}/" in path for path in files)
    assert resolve("org/model").revision == new
    assert resolve("org/model", revision=old).path.name == old


@pytest.mark.parametrize("into", ["the cache", "a folder"])
def test_companions_in_other_cases_and_chat_templates_are_fetched(hub: HubServer, tmp_path: Path, into: str) -> None:
    wanted = {"additional_chat_templates/tool use.jinja": b"{{ tools }}", "License": b"MIT", "notice.md": b"by us"}
    outside = {
        "additional_chat_templates/../../x.jinja": b"1",
        "additional_chat_templates\\x.jinja": b"2",
        "additional_chat_templates/a/b.jinja": b"3",
        "additional_chat_templates/code.py": b"4",
    }
    hub.add_repo("org/model", MODEL | wanted | outside)
    snapshot = download("org/model", tmp_path / "out") if into == "a folder" else resolve("org/model")
    found = {
        path.relative_to(snapshot.path).as_posix(): path.read_bytes()
        for path in snapshot.path.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(snapshot.path).parts)
    }
    assert found == MODEL | wanted
    assert companions(snapshot.path) == sorted(found.keys() - {*WEIGHTS, "config.json", "README.md", INDEX_NAME})


def test_only_checkpoint_files_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    unwanted = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the weights once more",
        "consolidated.00.pth": b"pickle",
        "modeling_custom.py": b"import os",
        "tokenizer.py": b"import os",
        "tokenizer.pkl": b"pickle",
        "original/model.safetensors": b"other layout",
        "model.onnx": b"",
        ".gitattributes": b"",
    }
    hub.add_repo("org/model", MODEL | unwanted)
    download("org/model", tmp_path / "model")
    asked = {r.path.rsplit("/", 1)[1] for r in hub.requests if not r.path.startswith("/api/")}
    assert asked == MODEL.keys()
    assert contents(tmp_path / "model") == MODEL


def test_list_files_fetches_nothing(hub: HubServer, cache: Path) -> None:
    commit = hub.add_repo("org/model", MODEL)
    listing = list_files("org/model")
    assert (listing.id, listing.revision) == ("org/model", commit)
    assert {file.name: file.size for file in listing.files} == {name: len(content) for name, content in MODEL.items()}
    assert listing.size == sum(map(len, MODEL.values()))
    assert [file.name for file in listing.files[-2:]] == sorted(WEIGHTS)  # weights last: cheap failures first
    assert [r.path for r in hub.requests] == ["/api/models/org/model"] and not cache.exists()


def test_a_complete_commit_needs_no_request(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo("org/model", MODEL)
    first = [download("org/model", where) for where in (None, tmp_path / "model")]
    hub.requests.clear()
    assert [download("org/model", where, revision=commit) for where in (None, tmp_path / "model")] == first
    assert not hub.requests
    # Nor are its gigabytes read again: nothing to report.
    assert resolve("org/model", progress=lambda *step: pytest.fail(str(step))) == first[0]
    assert [r.path for r in hub.requests] == ["/api/models/org/model"]  # main could have moved: one question


def test_progress_and_silence(hub: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    hub.add_repo("org/model", MODEL)
    told: list[tuple[str, int, int]] = []
    resolve("org/model", progress=lambda *step: told.append(step))
    size = len(WEIGHTS[SHARD])
    steps = [(done, total) for name, done, total in told if name == SHARD]
    assert steps == [(done, size) for done in (*range(512, size + 1, 512), size)]
    assert (f"checking {SHARD}", size, size) in told
    assert capfd.readouterr() == ("", "")


def test_the_token_is_sent_to_the_hub_but_not_to_its_storage(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/private", MODEL, private=True)
    hub.tokens["hf_reader"] = {"org/private"}
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    resolve("org/private")
    assert all(r.token for r in hub.requests if not r.path.startswith("/cdn/"))
    assert [r.token for r in hub.requests if r.path.startswith("/cdn/")] == [False] * 3


# ---- without a network


def test_offline_uses_what_is_in_the_cache(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_repo("org/model", MODEL)
    snapshot, local = resolve("org/model"), download("org/model", tmp_path / "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert resolve("org/model") == resolve("org/model", revision=commit) == snapshot
    assert download("org/model", tmp_path / "model") == local
    assert not hub.requests
    (tmp_path / "other").mkdir()
    for folder in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(HubError, match="not in the local cache"):
            download("org/model", folder)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids"):
        list_files("org/model")
    for hub_id, revision in [("org/other", None), ("org/model", "dev"), ("org/model", "0" * 40)]:
        with pytest.raises(HubError, match=r"not in the local cache.*HF_HUB_OFFLINE"):
            resolve(hub_id, revision=revision)


# ---- folders


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("Qwen/Qwen2.5-7B") and is_hub_id("gpt2")
    for path in ("./gpt2", "../gpt2", "/gpt2", "~/gpt2", "a/b/c", "a//b", "a/", "C:\\m", "a--b/c", "a..b", "m.git", ""):
        assert not is_hub_id(path), path
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not is_hub_id("org/model")


def test_a_plain_folder_is_used_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == Snapshot(folder, "model", None)
    with pytest.raises(InputError, match="holds revision unknown, not main"):
        resolve("org/model", revision="main")


def test_what_is_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        resolve(str(tmp_path / "absent"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"is a file.*use the folder"):
        resolve(str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match="is not a Hub id"):
        download("no/hub/id")


def test_downloaded_folder_remembers_its_origin(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo("org/model", MODEL)
    download("org/model", tmp_path / "model")
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert resolve(str(moved)) == Snapshot(moved, "org/model", commit)
    assert resolve(str(moved), revision=commit).revision == commit
    with pytest.raises(InputError, match=f"holds revision {commit}, not main"):
        resolve(str(moved), revision="main")


@pytest.mark.parametrize("spoil", ["cut", "delete"])
def test_downloaded_folder_that_changed_is_refused(hub: HubServer, tmp_path: Path, spoil: str) -> None:
    hub.add_repo("org/model", MODEL)
    folder = download("org/model", tmp_path / "model").path
    if spoil == "cut":
        (folder / SHARD).write_bytes(WEIGHTS[SHARD][:-1])
    else:
        (folder / SHARD).unlink()
    with pytest.raises(InputError, match=rf"{SHARD} .*slideconvert download org/model .*{RECORD}"):
        resolve(str(folder))


def test_folder_inside_the_cache_tells_its_origin(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--model" / "snapshots" / ("0a" * 20)
    folder.mkdir(parents=True)
    assert resolve(str(folder)) == Snapshot(folder, "org/model", "0a" * 20)
    other = tmp_path / "datasets--org--model" / "snapshots" / ("0a" * 20)
    other.mkdir(parents=True)
    assert resolve(str(other)).revision is None


def test_folder_with_broken_off_transfers_is_refused(tmp_path: Path) -> None:
    parts = tmp_path / ".cache" / "huggingface" / "download"
    parts.mkdir(parents=True)
    (parts / "abc.123.incomplete").touch()
    with pytest.raises(InputError, match=r"download is unfinished, 1 incomplete file.*hf download"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("words", ["{", "[]", '{"id": "a/b", "revision": "c", "files": {"x": {}}}'])
def test_unreadable_record_is_named(tmp_path: Path, words: str) -> None:
    (tmp_path / RECORD).write_text(words)
    with pytest.raises(InputError, match=rf"{RECORD}: not a record of a download"):
        resolve(str(tmp_path))


def test_folders_of_others_are_left_alone(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/model", MODEL)
    commit = hub.add_repo("org/other", {"config.json": b"{}", "model.safetensors.index.json": INDEX, **WEIGHTS})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes(b"my own work")
    with pytest.raises(InputError, match="is not empty, and not from a download"):
        download("org/model", mine)
    assert contents(mine) == {"model.safetensors": b"my own work"}
    download("org/other", tmp_path / "other")
    with pytest.raises(InputError, match=f"holds org/other at {commit}, not org/model at"):
        download("org/model", tmp_path / "other")
    with pytest.raises(InputError, match="is a file"):
        download("org/model", mine / "model.safetensors")


def test_the_server_of_these_tests_suffices_for_huggingface_hub_itself(hub: HubServer) -> None:
    commit = hub.add_repo("org/model", MODEL)
    folder = Path(snapshot_download("org/model", endpoint=hub.url))
    assert (folder.name, contents(folder)) == (commit, MODEL)
    assert any(r.path == f"/api/models/org/model/tree/{commit}" for r in hub.requests)


def test_import_is_light() -> None:
    code = "import sys, slideconvert.hub.source; print(*sys.modules)"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "huggingface_hub", "httpx", "tqdm"} & set(run.stdout.split())
