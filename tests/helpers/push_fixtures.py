"""What the tests of `push` share: a Hub where we have an account, and a checkpoint to publish."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.conftest import MAGNITUDE, Cli
from tests.helpers.hub_models import TOKEN
from tests.helpers.hub_repo import Account
from tests.helpers.hub_server import HubServer
from tests.helpers.pushing import SHARDS


@pytest.fixture
def mine(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub that knows our token. Transfers go by HTTP, and every weight file by itself."""
    hub.add_account(TOKEN, Account("me", {"lab": "write", "guests": "read"}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("slideconvert.hub.upload.ALONE", 20_000)
    return hub


@pytest.fixture
def out(cli: Cli, source: Path, tmp_path: Path) -> Path:
    """A verified checkpoint of several shards."""
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", *SHARDS).code == 0
    return tmp_path / "out"
