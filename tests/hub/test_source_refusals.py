"""Models that cannot be used or may not be read, and a Hub in trouble: one clear sentence each."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from slideconvert.errors import TRY_AGAIN, HubError
from slideconvert.hub.endpoint import endpoint
from slideconvert.hub.source import resolve
from tests.conftest import Cli
from tests.helpers.hub_models import MODEL, TOKEN, WEIGHTS, sentence
from tests.helpers.hub_repo import Fault
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_fixtures"]

SHARD = min(WEIGHTS)


# ---- repositories that cannot be used


def test_only_pickles(hub: HubServer) -> None:
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(HubError) as error:
        resolve("org/old")
    assert "only as pickles (pytorch_model.bin), which can run code" in sentence(error)
    assert [r.path for r in hub.requests] == ["/api/models/org/old"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "model.bf16.gguf": b"", "model.q8.gguf": b""},
            "`hf download org/model model.bf16.gguf`",
        ),
        ({"config.json": b"{}", "other.safetensors": b"", "a.bin": b""}, "neither model.safetensors nor"),
        ({"model.safetensors": b""}, "has no config.json"),
        ({}, "neither model.safetensors nor"),
    ],
)
def test_other_formats(hub: HubServer, files: dict[str, bytes], words: str) -> None:
    hub.add_repo("org/model", files)
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert words in sentence(error)


def test_index_that_names_an_absent_shard(hub: HubServer) -> None:
    hub.add_repo("org/model", {name: content for name, content in MODEL.items() if name != max(WEIGHTS)})
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert (
        f"1 of 2 shards that model.safetensors.index.json names are not in the repository: {max(WEIGHTS)}"
        in sentence(error)
    )
    assert not hub.requests_for(SHARD)  # found out before gigabytes were fetched


@pytest.mark.parametrize("index", [b"{}", b"[]", b"<html>", b'{"weight_map": {"a": ["b"]}}'])
def test_index_that_is_none(hub: HubServer, index: bytes) -> None:
    hub.add_repo("org/model", MODEL | {"model.safetensors.index.json": index})
    with pytest.raises(HubError, match="is not an index of shards"):
        resolve("org/model")


# ---- access


def test_gated(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/gated", MODEL, gated=True)
    with pytest.raises(HubError) as error:
        resolve("org/gated")
    words = sentence(error)
    assert "no token was sent" in words and "https://huggingface.co/org/gated" in words and "hf auth login" in words
    hub.tokens[TOKEN] = set()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HubError, match="this account has no access"):
        resolve("org/gated")
    hub.tokens[TOKEN] = {"org/gated"}
    assert resolve("org/gated").id == "org/gated"


@pytest.mark.parametrize("token", [None, TOKEN])
def test_missing_and_private(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    hub.add_repo("org/private", MODEL, private=True)
    if token:
        hub.tokens[token] = set()
        monkeypatch.setenv("HF_TOKEN", token)
    for hub_id in ("org/private", "org/missing"):
        with pytest.raises(HubError) as error:
            resolve(hub_id)
        assert f"{hub_id}: no such model on 127.0.0.1 (or it is private)" in sentence(error)


def test_unknown_revision(hub: HubServer) -> None:
    hub.add_repo("org/model", MODEL)
    for revision in ("v9", "0" * 40):
        with pytest.raises(HubError) as error:
            resolve("org/model", revision=revision)
        assert f"org/model has no revision '{revision}'" in sentence(error)


@pytest.mark.parametrize("token", [TOKEN, "an.oidc-token/without+form"])
def test_messages_of_the_server_are_cleaned(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    hub.add_repo("org/model", MODEL)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="the Hub refuses the token") as unknown:
        resolve("org/model")
    assert token not in sentence(unknown)
    hub.tokens[token] = set()
    told = {"X-Error-Message": f"no rights for {token} or hf_another"}
    hub.faults.append(Fault("/api/models/org/model", status=403, headers=told))
    with pytest.raises(HubError) as forbidden:
        resolve("org/model")
    assert "answers HTTP 403: no rights for *** or ***" in sentence(forbidden)


def test_the_token_is_never_logged(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo("org/model", MODEL)
    hub.tokens[TOKEN] = set()
    hub.faults += [Fault(SHARD, drop_after=100), Fault(max(WEIGHTS), status=500)]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    library = logging.getLogger("huggingface_hub")  # it does not propagate to the root
    monkeypatch.setattr(library, "handlers", [*library.handlers, caplog.handler])
    monkeypatch.setattr(library, "level", logging.DEBUG)
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert any(r.token for r in hub.requests) and "Trying to resume" in caplog.text
    out, err = capfd.readouterr()
    for text in (sentence(error, TRY_AGAIN), repr(error.value.__cause__), caplog.text, out, err):
        assert TOKEN not in text


# ---- a Hub in trouble


def test_rate_limit_passes(hub: HubServer, waits: list[float]) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault("config.json", method="HEAD", times=2, status=429, headers={"Retry-After": "7"}))
    assert resolve("org/model").id == "org/model"
    assert waits == [8]  # what the Hub asked for and one second more; the first retry is at once


@pytest.mark.parametrize(
    ("path", "method"), [("/api/models/org/model", "GET"), ("config.json", "HEAD"), (SHARD, "GET")]
)
@pytest.mark.parametrize(
    ("status", "words"),
    [(429, "too many requests (HTTP 429) (wait 7 seconds"), (500, "failed (HTTP 500)"), (503, "failed (HTTP 503)")],
)
def test_trouble_that_stays(hub: HubServer, path: str, method: str, status: int, words: str) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault(path, times=99, method=method, status=status, headers={"Retry-After": "7"}))
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert words in sentence(error, TRY_AGAIN)
    hub.faults.clear()
    assert resolve("org/model").id == "org/model"


def test_no_network(cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server:
        address = server.url.replace("//", f"//user:{TOKEN}@")
    for url in (address, "not-an-address"):
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(HubError) as error:
            resolve("org/model")
        words = sentence(error, TRY_AGAIN)
        assert words.startswith("org/model: no such local folder, and ") and "cannot be reached" in words
        assert TOKEN not in words
        assert all(way in words for way in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "local folder"))


def test_network_that_goes_between_two_files(hub: HubServer) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault("config.json", method="HEAD", times=99, drop_after=0))
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert "was interrupted" in sentence(error, TRY_AGAIN)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/api/models/org/model", body=b"<html>Please log in to the network</html>"),
        Fault("config.json", method="HEAD", status=200),
    ],
)
def test_what_is_no_hub(hub: HubServer, fault: Fault) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(replace(fault))
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert "127.0.0.1 does not answer like a Hugging Face Hub" in sentence(error)


def test_listing_without_checksums(hub: HubServer) -> None:
    hub.add_repo("org/model", MODEL)
    siblings = [{"rfilename": name} for name in ("config.json", "model.safetensors")]
    listing = {"id": "org/model", "sha": "0" * 40, "siblings": siblings}
    hub.faults.append(Fault("/api/models/org/model", body=json.dumps(listing).encode()))
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert "the listing lacks commit or checksums" in sentence(error)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "EntryNotFound"}, "lists a file that it does not have"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "has been disabled"),
        (418, {}, "answers HTTP 418: no reason given"),
    ],
)
def test_other_answers(hub: HubServer, status: int, headers: dict[str, str], words: str) -> None:
    hub.add_repo("org/model", MODEL)
    hub.faults.append(Fault("/api/models/org/model", status=status, headers=headers))
    with pytest.raises(HubError) as error:
        resolve("org/model")
    assert words in sentence(error)


@pytest.mark.parametrize("url", ["http://mirror.example", "http://10.0.0.1:8080/hub", "http://localhost.evil.example"])
def test_a_token_is_not_sent_unencrypted(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    """Nothing is sent at all; without a token, a mirror may be reached as it is."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    for words in (("plan", "org/model"), ("download", "org/model", tmp_path / "out")):
        done = cli(*words)
        assert done.code == 2 and f"HF_ENDPOINT={url} is not encrypted" in done.err and TOKEN not in done.err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert endpoint() == url


@pytest.mark.parametrize("url", ["https://mirror.example", "http://localhost:80", "http://127.0.0.2", "http://[::1]:1"])
def test_encrypted_endpoints_and_this_machine_may_have_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert endpoint() == url


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_mistyped_path_is_a_path(
    hub: HubServer, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It looks like a Hub id; the folder that it begins with tells them apart."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    refused = cli(command, "models/lama", *(["out"] if command == "convert" else []))
    assert refused.code == 2 and "models/lama: no such folder" in refused.err
    assert "did you mean models/llama?" in refused.err
    assert "no such folder" not in cli("plan", "org/lama").err
