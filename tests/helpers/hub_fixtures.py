"""The `hub` fixture: a Hub on the loopback, and huggingface_hub in a clean room. Use: pytest_plugins = [...]."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from tests.helpers.hub_server import HubServer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps: the seconds that huggingface_hub would have waited before each retry."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; no token and no setting of the machine's user reaches the test."""
    for name in os.environ:
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")
    home = tmp_path / "hf_home"
    # huggingface_hub reads its environment once, at import: its constants are what counts afterwards.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # its user agent needs a request of its own
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)  # what a broken connection leaves is whole chunks
    return home / "hub"


@pytest.fixture
def hub(cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub without models, where HF_ENDPOINT points to."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        close_session()
        yield server
        close_session()
