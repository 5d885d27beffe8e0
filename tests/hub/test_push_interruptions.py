"""Pushes that fail: a clear error, nothing published, and the next run sends only what is missing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from slideconvert.errors import TRY_AGAIN, HubError
from slideconvert.hub.upload_errors import upload_errors
from tests.conftest import Cli
from tests.helpers.hub_models import TOKEN, sentence
from tests.helpers.hub_repo import Fault
from tests.helpers.hub_server import HubServer
from tests.helpers.hub_upload import GIT_ATTRIBUTES, SIGNATURE
from tests.helpers.pushing import REPO, complaint, digests, is_published, sent, shards

pytest_plugins = ["tests.helpers.hub_fixtures", "tests.helpers.push_fixtures"]

COMMIT, PREUPLOAD, BATCH = "/commit/main", "/preupload/main", "/objects/batch"
ALWAYS = 99


def fault(where: str, method: str, **words: Any) -> Fault:
    """A fault of a request; "shard" stands for where the second weight file is put."""
    return Fault(where, method=method, times=ALWAYS, **words)


def aim(faults: list[Fault], out: Path) -> list[Fault]:
    second = digests(shards(out))[1]
    return [replace(fault, path=second if fault.path == "shard" else fault.path) for fault in faults]


MESSAGE = "X-Error-Message"
BREAKS = {
    "a connection that drops": (fault("shard", "PUT", drop_after=3000), "the upload was interrupted"),
    "storage in trouble": (fault("shard", "PUT", status=500), "failed (HTTP 500)"),
    "too many parts": (
        fault("shard", "PUT", status=429, headers={"Retry-After": "7"}), "too many requests (HTTP 429) (wait 7 seconds"
    ),
    "a link that is too old": (fault("shard", "PUT", status=403), "storage refuses a file (HTTP 403) (the upload link"),
    "storage that verifies otherwise": (fault("/info/lfs/verify", "POST", status=500), "failed (HTTP 500)"),
    "no room, said by the batch": (
        fault(BATCH, "POST", status=403, headers={MESSAGE: "Private repository storage limit reached"}),
        "no storage left on the Hub: Private repository storage limit reached",
    ),
    "no room, by its status": (
        fault(BATCH, "POST", status=413, headers={MESSAGE: "Too much"}), "no storage left on the Hub: Too much"
    ),
    "payment": (fault(COMMIT, "POST", status=402, headers={MESSAGE: "Pay first"}), "no storage left on the Hub: Pay"),
    "a token that expires": (
        fault(BATCH, "POST", status=401, headers={MESSAGE: f"Token {TOKEN} is expired"}), "the Hub refuses the token"
    ),
    "rights that are taken": (
        fault(COMMIT, "POST", status=403, headers={MESSAGE: f"{TOKEN} is no good"}),
        "this token has no write access (HTTP 403: *** is no good)",
    ),
    "a Hub in trouble": (fault(PREUPLOAD, "POST", status=503), "127.0.0.1 failed (HTTP 503)"),
    "a Hub that has enough": (
        fault(COMMIT, "POST", status=429, headers={"Retry-After": "30"}), "(HTTP 429) (wait 30 seconds, then run"
    ),
    "a commit that fails": (fault(COMMIT, "POST", status=500), "127.0.0.1 failed (HTTP 500)"),
    "a commit that another overtook": (fault(COMMIT, "POST", status=409), "changed during this push"),
    "an answer of no Hub": (fault(PREUPLOAD, "POST", body=b"<html>"), "does not answer like a Hugging Face Hub"),
    "another answer of no Hub": (fault(BATCH, "POST", body=b"{}"), "does not answer like a Hugging Face Hub"),
    "an object that is refused": (
        fault(
            BATCH,
            "POST",
            body=b'{"objects": [{"oid": "a", "size": 1, "error": {"code": 422, "message": "no hf_abc here"}}]}',
        ),
        "the Hub refuses: Encountered error for file with OID a: `no *** here",
    ),
    "a card that is refused": (
        fault("/validate-yaml", "POST", status=400, body=b'{"errors": [{"message": "bad license"}]}'),
        "refuses the card's metadata: - bad license",
    ),
    "another answer": (
        fault(COMMIT, "POST", status=418, headers={MESSAGE: "a teapot"}), "answers HTTP 418: a teapot"
    ),
}  # fmt: skip
LATER = {
    "a connection that drops",
    "storage in trouble",
    "too many parts",
    "a link that is too old",
    "storage that verifies otherwise",
    "a Hub in trouble",
    "a Hub that has enough",
    "a commit that fails",
    "a commit that another overtook",
}
"""What the same command may do later."""


@pytest.mark.parametrize("updating", [False, True], ids=["new repository", "update"])
@pytest.mark.parametrize("name", BREAKS)
def test_a_failed_push_is_reported_and_resumes(
    mine: HubServer, cli: Cli, out: Path, waits: list[float], name: str, updating: bool
) -> None:
    before = {"config.json": b"{}", "report.json": b"{}", "model.safetensors": b"old"}
    if updating:
        mine.add_repo(REPO, before)
    spoiled, words = BREAKS[name]
    mine.faults += aim([spoiled], out)
    line = complaint(cli("push", out, REPO, "-q"), TRY_AGAIN if name in LATER else 2)
    assert words in line
    assert mine.repos[REPO].head() == (before if updating else GIT_ATTRIBUTES)  # nobody sees anything of it

    mine.faults.clear()
    arrived = {oid for oid in sent(mine) if mine.repos[REPO].stored(oid)}
    mine.requests.clear()
    done = cli("push", out, REPO, "-q")
    assert (done.code, done.err) == (0, "")
    assert is_published(mine.repos[REPO], out) and "old" not in mine.repos[REPO].head()
    assert not arrived & set(sent(mine)) and arrived | set(sent(mine)) == set(digests(shards(out)))


def test_temporary_faults_are_retried(mine: HubServer, cli: Cli, out: Path, waits: list[float]) -> None:
    broken = [Fault("shard", method="PUT", times=2, drop_after=3000), Fault(PREUPLOAD, method="POST", status=503)]
    limited = Fault(BATCH, method="POST", status=429, headers={"Retry-After": "7"})
    mine.faults += aim([*broken, limited], out)
    done = cli("push", out, REPO, "-q")
    assert (done.code, done.err) == (0, "") and is_published(mine.repos[REPO], out)
    assert sorted(waits) == [1, 1, 2, 8]  # what the Hub asked for and one second more
    assert sent(mine).count(digests(shards(out))[1]) == 3


def test_a_killed_push_resumes(mine: HubServer, cli: Cli, out: Path, cache: Path) -> None:
    mine.faults += aim([fault("shard", "PUT", drop_after=3000, stall=True)], out)
    code = "from slideconvert.hub import upload; upload.ALONE = 20_000; from slideconvert.cli import main; main()"
    env = {"HF_ENDPOINT": mine.url, "NO_PROXY": "*", "HF_HOME": str(cache.parent), "HF_TOKEN": TOKEN}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code, "push", str(out), REPO, "-q"]
    with subprocess.Popen(command, env=env, cwd=Path(__file__).parents[2]) as process:
        assert mine.stalled.wait(timeout=60)
        process.kill()
    assert mine.repos[REPO].head() == GIT_ATTRIBUTES
    mine.faults.clear()
    mine.requests.clear()
    assert cli("push", out, REPO).code == 0 and is_published(mine.repos[REPO], out)
    assert sent(mine) == digests(shards(out))[1:]


def test_the_answer_to_the_commit_is_lost(mine: HubServer, cli: Cli, out: Path) -> None:
    mine.faults.append(Fault(COMMIT, method="POST", drop_after=0))
    assert "the upload was interrupted" in complaint(cli("push", out, REPO, "-q"), TRY_AGAIN)
    mine.requests.clear()
    assert cli("push", out, REPO).code == 0 and is_published(mine.repos[REPO], out)
    assert not sent(mine) and len(mine.repos[REPO].commits) == 2


# ---- somebody else is at work


@pytest.mark.parametrize("when", [PREUPLOAD, BATCH, "/validate-yaml"])
def test_the_branch_moves_during_a_push(mine: HubServer, cli: Cli, out: Path, when: str) -> None:
    mine.add_repo(REPO, {"notes.txt": b"mine"})
    theirs = {"notes.txt": b"theirs", "config.json": b"{}"}
    mine.faults.append(Fault(when, method="POST", then=lambda: mine.add_repo(REPO, theirs)))
    line = complaint(cli("push", out, REPO, "-q"), TRY_AGAIN)
    assert f"{REPO} changed during this push: nothing was published" in line
    assert mine.repos[REPO].head() == theirs


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("when", ["POST /repos/create", f"POST {BATCH}", "PUT shard"])
def test_a_shard_changes_during_a_push(mine: HubServer, cli: Cli, out: Path, which: int, when: str) -> None:
    """Sent already or not yet; of the same size, with the time of its last change set back."""
    shard = shards(out)[which]
    times = shard.stat()

    def change() -> None:
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))

    method, path = when.split()
    mine.faults += aim([Fault(path, method=method, then=change)], out)
    line = complaint(cli("push", out, REPO, "-q"))
    assert f"{shard} was changed while it was being pushed: nothing was published" in line
    assert mine.repos[REPO].head() == GIT_ATTRIBUTES


@pytest.mark.parametrize("when", ["/validate-yaml", COMMIT])
@pytest.mark.parametrize("name", ["model-*.safetensors", "config.json", "kernels/*.md"])
def test_a_file_changes_after_the_last_check(mine: HubServer, cli: Cli, out: Path, name: str, when: str) -> None:
    """The push publishes the bytes that it has checked."""
    path = sorted(out.glob(name))[-1]
    before = path.read_bytes()
    mine.faults.append(Fault(when, method="POST", then=lambda: path.write_bytes(b"late")))
    assert cli("push", out, REPO, "-q").code == 0
    assert mine.repos[REPO].head()[path.relative_to(out).as_posix()] == before


@pytest.mark.parametrize("name", ["model-*.safetensors", "config.json", "kernels/*.md"])
def test_a_file_vanishes_during_a_push(mine: HubServer, cli: Cli, out: Path, name: str) -> None:
    path = sorted(out.glob(name))[-1]
    mine.faults.append(Fault(BATCH, method="POST", then=path.unlink))
    assert f"{path} was changed while it was being pushed" in complaint(cli("push", out, REPO, "-q"))
    assert mine.repos[REPO].head() == GIT_ATTRIBUTES


@pytest.mark.parametrize("spoil", ["damaged", "missing"])
def test_the_published_file_differs_from_the_one_sent(mine: HubServer, cli: Cli, out: Path, spoil: str) -> None:
    shard = shards(out)[0]

    def spoiled() -> None:
        files = mine.repos[REPO].head() if REPO in mine.repos else {}
        if shard.name in files:
            files[shard.name] = bytes(shard.stat().st_size)
            if spoil == "missing":
                del files[shard.name]

    mine.faults.append(Fault("", method="GET", times=ALWAYS, then=spoiled))
    failed = cli("push", out, REPO, "-q")
    assert failed.code == 1
    assert f"the files on the Hub differ from those sent: {shard.name} is {spoil} (1 of " in failed.err
    mine.faults.clear()
    assert cli("push", out, REPO).code == 0 and is_published(mine.repos[REPO], out)  # and is mended


def test_gitignore_would_leave_a_file_out(mine: HubServer, cli: Cli, out: Path) -> None:
    for name in (shards(out)[0].name, "config.json"):
        mine.add_repo(REPO, {".gitignore": name.encode()})
        assert f"its .gitignore excludes {name}" in complaint(cli("push", out, REPO, "-q"))
        assert mine.repos[REPO].head() == {".gitignore": name.encode()}


def test_the_token_appears_in_no_output(
    mine: HubServer,
    cli: Cli,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    library = logging.getLogger("huggingface_hub")  # it does not propagate to the root
    monkeypatch.setattr(library, "handlers", [*library.handlers, caplog.handler])
    mine.faults += aim([fault(COMMIT, "POST", status=403), Fault("shard", method="PUT", status=500)], out)
    complaint(cli("push", out, REPO, "-v"))
    mine.faults.clear()
    done = cli("push", out, REPO, "--json")
    assert done.code == 0 and any(r.token for r in mine.requests)
    written = [path.read_bytes() for path in [*tmp_path.rglob("*")] if path.is_file()]
    published = [content for files in mine.repos[REPO].commits.values() for content in files.values()]
    assert not [text for text in [*written, *published] if TOKEN.encode() in text]
    assert TOKEN not in done.out + done.err + caplog.text and SIGNATURE not in done.err + caplog.text


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("a defect"), ValueError("a defect"), OSError("?"), FileNotFoundError(2, "x")]
)
def test_unknown_errors_surface(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, upload_errors(REPO):
        raise error
    assert raised.value is error


def test_no_network(cache: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    from slideconvert.hub.account import find_target

    with HubServer() as server:
        address = server.url.replace("//", f"//user:{TOKEN}@")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for endpoint in (address, "not-an-address"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        huggingface_hub.close_session()
        with pytest.raises(HubError) as error:
            find_target(REPO)
        words = sentence(error, TRY_AGAIN)
        assert "cannot be reached" in words and TOKEN not in words
