"""A server that answers each question with something else: a proxy, a login page, another API. One line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slideconvert.hub.answers import EXPECTED
from tests.conftest import Cli
from tests.helpers.hub_models import MODEL
from tests.helpers.hub_repo import Fault
from tests.helpers.hub_server import HubServer
from tests.helpers.hub_upload import GIT_ATTRIBUTES
from tests.helpers.pushing import REPO, complaint, is_published

pytest_plugins = ["tests.helpers.hub_fixtures", "tests.helpers.push_fixtures"]

ANSWERS = {
    "an empty object": b"{}",
    "a list": b"[]",
    "a list of objects": b"[{}, null]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"5",
    "a page": b"<html><body>Please log in to the network</body></html>",
    "nothing": b"",
    "bytes": b"\x80\xff\x00",
    "a deep list": b"[" * 100_000,
    "fields of other types": json.dumps(
        dict.fromkeys(("id", "sha", "siblings", "name", "auth", "orgs", "url", "files", "objects", "commitUrl"), 3)
    ).encode(),
}
SHA = "0" * 40
LISTINGS = [
    {"id": "x", "sha": ["a"], "siblings": []},
    {"id": "x", "sha": "main", "siblings": []},
    {"id": "x", "sha": SHA, "createdAt": "yesterday"},
    {"id": "x", "sha": SHA, "siblings": [{"rfilename": 3}]},
    {"id": "x", "sha": SHA, "siblings": [{"rfilename": "config.json", "size": "3", "blobId": SHA}]},
    {"id": "x", "sha": SHA, "siblings": [{"rfilename": "config.json", "size": -1, "blobId": SHA}]},
    {"id": "x", "sha": SHA, "siblings": [{"rfilename": "config.json", "size": 3, "blobId": 4}]},
    {"id": "x", "sha": SHA, "siblings": [{"rfilename": "a", "lfs": {"size": None, "sha256": "", "pointerSize": 1}}]},
]
USERS = [
    {"name": ["me"]},
    {"name": "me", "auth": [1]},
    {"name": "me", "auth": {"accessToken": "write"}},
    {"name": "me", "orgs": [{"roleInOrg": "write"}]},
    {"name": "me", "orgs": "lab"},
    {"name": "me", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": [{"entity": 3}]}}}},
]


def expected(function: str) -> str:
    return f"127.0.0.1 does not answer like a Hugging Face Hub: {EXPECTED[function]} was expected (check HF_ENDPOINT"


@pytest.mark.parametrize("command", ["download", "plan"])
def test_what_lists_no_files(hub: HubServer, cli: Cli, tmp_path: Path, command: str) -> None:
    hub.add_repo("org/model", MODEL)
    more = (tmp_path / "model", "-q") if command == "download" else ("--pattern", "2_8")
    for answer in (*ANSWERS.values(), *(json.dumps(listing).encode() for listing in LISTINGS)):
        hub.faults[:] = [Fault("/api/models/org/model", body=answer)]
        assert expected("model_info") in complaint(cli(command, "org/model", *more)), answer[:200]
    assert not (tmp_path / "model").exists()


QUESTIONS = {
    "GET /api/whoami-v2": ("whoami", USERS),
    f"GET /api/models/{REPO}/revision/main": ("model_info", LISTINGS),
    "POST /api/repos/create": ("create_repo", [{"url": "x"}, {"url": "http://["}]),
    "POST /api/validate-yaml": ("_validate_yaml", []),
    f"POST /api/models/{REPO}/preupload/main": ("preupload_lfs_files", []),
    f"POST /{REPO}.git/info/lfs/objects/batch": ("preupload_lfs_files", []),
    f"POST /api/models/{REPO}/commit/main": ("create_commit", [{"commitUrl": "x", "commitOid": 3}]),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_takes_no_push(mine: HubServer, cli: Cli, out: Path, waits: list[float], question: str) -> None:
    function, more = QUESTIONS[question]
    method, path = question.split()
    for answer in (*ANSWERS.values(), *(json.dumps(one).encode() for one in more)):
        if function == "_validate_yaml" and answer.startswith(b"{"):
            continue  # an object without errors and warnings
        if function != "create_repo":
            mine.repos.clear()
            mine.add_repo(REPO, GIT_ATTRIBUTES)
        mine.faults[:] = [Fault(path, method=method, body=answer)]
        assert expected(function) in complaint(cli("push", out, REPO, "-q")), answer[:200]
        published = function == "create_commit"
        assert published or (REPO in mine.repos and mine.repos[REPO].head() == GIT_ATTRIBUTES) or not mine.repos
        mine.repos.clear()
    mine.faults.clear()
    assert cli("push", out, REPO, "-q").code == 0
    assert is_published(mine.repos[REPO], out)


def test_a_defect_of_slideconvert_is_not_blamed_on_the_hub(
    mine: HubServer, cli: Cli, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.add_repo(REPO, GIT_ATTRIBUTES)
    monkeypatch.setattr("slideconvert.hub.account.files_of", lambda info: {}["files"])
    done = cli("push", out, REPO, "-q")
    assert done.code == 70 and "a defect of slideconvert" in done.err
