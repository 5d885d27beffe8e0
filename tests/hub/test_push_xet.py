"""Pushes through Xet, which a loopback cannot speak: what hf_xet offers to huggingface_hub stands in for it."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from slideconvert.errors import TRY_AGAIN
from slideconvert.hub.account import find_target
from slideconvert.hub.publish import carry_out, plan_push, read_folder
from tests.conftest import Cli
from tests.helpers.hub_repo import sha256
from tests.helpers.hub_server import HubServer
from tests.helpers.hub_upload import GIT_ATTRIBUTES
from tests.helpers.pushing import REPO, complaint, is_published, sent, shards

pytest_plugins = ["tests.helpers.hub_fixtures", "tests.helpers.push_fixtures"]


class FakeXet:
    """A session of hf_xet that puts files into the storage of our Hub; `spoil` is called before each."""

    def __init__(self, hub: HubServer) -> None:
        self.hub, self.names, self.spoil = hub, list[str](), lambda: None

    def new_upload_commit(self, *, progress_callback: Any, **_: Any) -> FakeXet:
        self.callback = progress_callback
        return self

    def __enter__(self) -> FakeXet:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start_upload_file(self, path: str, sha256: Any) -> Any:
        self.spoil()
        data = Path(path).read_bytes()
        self.names.append(Path(path).name)
        digest = self.digest(data)
        self.hub.repos[REPO].storage[digest] = data
        for part in (2, 1):
            report = SimpleNamespace(total_bytes_completed=len(data) // part)
            if self.callback:
                self.callback(report, {})
        return SimpleNamespace(result=lambda: SimpleNamespace(xet_info=SimpleNamespace(sha256=digest)))

    @staticmethod
    def digest(data: bytes) -> str:
        return sha256(data)


@pytest.fixture
def xet(mine: HubServer, monkeypatch: pytest.MonkeyPatch) -> FakeXet:
    session = FakeXet(mine)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: True)
    monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: session)
    library = ModuleType("hf_xet")
    library.__dict__.update(COMPUTE_SHA256=None, __spec__=ModuleSpec("hf_xet", None))
    monkeypatch.setitem(sys.modules, "hf_xet", library)
    return session


def test_through_xet(mine: HubServer, xet: FakeXet, out: Path) -> None:
    told: list[int] = []
    folder = read_folder(out)
    upload = plan_push(folder, find_target(REPO))
    carry_out(folder, upload, public=False, message=None, progress=lambda stage, done, total: told.append(done))
    assert is_published(mine.repos[REPO], out) and xet.names == [path.name for path in shards(out)] and not sent(mine)
    assert shards(out)[0].stat().st_size // 2 in told and told == sorted(told)  # inside a file, too


def test_a_shard_changes_during_a_push_through_xet(mine: HubServer, xet: FakeXet, cli: Cli, out: Path) -> None:
    """Changed and changed back: only what was read for the upload tells."""
    shard = shards(out)[0]
    xet.digest = lambda data: "0" * 64  # type: ignore[method-assign]
    assert f"{shard} was changed while it was being pushed" in complaint(cli("push", out, REPO, "-q"))
    assert mine.repos[REPO].head() == GIT_ATTRIBUTES


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (
            RuntimeError("Task error: CAS Client Error: x"),
            "the upload was interrupted: nothing was published (run the same",
            TRY_AGAIN,
        ),
        (ConnectionError("Network error: error sending request"), "HF_HUB_DISABLE_XET=1", TRY_AGAIN),
        (PermissionError("Authentication error: token expired"), "storage refuses the token", 2),
    ],
)
def test_through_xet_it_breaks(
    mine: HubServer, xet: FakeXet, cli: Cli, out: Path, error: Exception, words: str, code: int
) -> None:
    def fails() -> None:
        raise error

    xet.spoil = fails
    assert words in complaint(cli("push", out, REPO, "-q"), code)
    assert mine.repos[REPO].head() == GIT_ATTRIBUTES
