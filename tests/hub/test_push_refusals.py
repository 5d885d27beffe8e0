"""What is never published: folders that are not whole and verified, and places where we may not write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.hub_models import MODEL, TOKEN
from tests.helpers.hub_repo import Account, Fault
from tests.helpers.hub_server import HubServer
from tests.helpers.pushing import REPO, complaint, is_published, sent, shards
from tests.helpers.serving import edit_config

pytest_plugins = ["tests.helpers.hub_fixtures", "tests.helpers.push_fixtures"]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(path / "config.json", lambda config: change(config["slidesparse_config"]))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that changed": (lambda out: flip(shards(out)[1]), "sha256 is not "),
    "a companion that changed": (lambda out: flip(out / "generation_config.json"), "generation_config.json: sha256 is"),
    "code that changed": (lambda out: flip(out / "modeling_slidesparse.py"), "modeling_slidesparse.py: sha256 differs"),
    "code that nobody lists": (lambda out: (out / "kernels" / "x.py").write_text(""), "kernels/x.py: code that the"),
    "an index that changed": (lambda out: flip(out / "model.safetensors.index.json"), "valid JSON"),
    "a companion that is gone": (lambda out: (out / "generation_config.json").unlink(), "json: file is missing"),
    "a shard that is gone": (lambda out: shards(out)[1].unlink(), "1 of 3 shards are missing"),
    "a weight file of another": (
        lambda out: shutil.copy(shards(out)[0], out / "more.safetensors"), "more.safetensors: a weight file that the"
    ),
    "no report": (lambda out: (out / "report.json").unlink(), "report.json is missing, so"),
    "a report that is none": (lambda out: (out / "report.json").write_text("[]"), "report.json: not a report"),
    "a report of other files": (
        lambda out: edit(out / "report.json", lambda report: report["files"].update({shards(out)[0].name: "0" * 64})),
        "report.json belongs to another conversion: its sha256 of model-00001-of-00003.safetensors is not that",
    ),
    "a report of another source": (
        lambda out: edit(out / "report.json", lambda report: report.update(source="meta-llama/Llama-3.2-1B")),
        "report.json belongs to another conversion: it contradicts the record",
    ),
    "a report of another pattern": (
        lambda out: edit(out / "report.json", lambda report: report["layers"][3].update(pattern="2:4")),
        "report.json belongs to another conversion: it contradicts the record",
    ),
    "a card that was edited": (
        lambda out: (out / "README.md").write_text((out / "README.md").read_text() + "The best model of all.\n"),
        "README.md does not match report.json",
    ),
    "a report that was embellished": (
        lambda out: edit(out / "report.json", lambda report: report.update(perplexity={"source": 9.0, "output": 9.0})),
        "does not match report.json",
    ),
    "a page of another": (lambda out: (out / "report.html").write_text("<html>"), "report.html does not match"),
    "a config that contradicts itself": (
        lambda out: edit(out / "config.json", lambda config: config["quantization_config"].update(ignore=[])),
        "quantization_config does not agree with the record",
    ),
    "a config that changed": (
        lambda out: edit(out / "config.json", lambda config: config.update(rms_norm_eps=0.1)),
        "config.json: its sha256 differs",
    ),
    "an adapter beside it": (
        lambda out: (out / "adapter_config.json").write_text("{}"), "adapter_config.json: a file that loaders may read"
    ),
    "a record without hashes": (lambda out: record(out, lambda said: said.update(files={})), "no sha256 of"),
    "a record of a model saved again": (
        lambda out: record(out, lambda said: said.update(saved_again="transformers")), "transformers has saved"
    ),
    "a record that leads elsewhere": (
        lambda out: (
            record(out, lambda said: said["files"].update({"../secret": "0" * 64})),
            edit(out / "report.json", lambda report: report["files"].update({"../secret": "0" * 64})),
        ),
        "names a file outside the folder: ../secret",
    ),
    "no record": (
        lambda out: edit(out / "config.json", lambda config: config.pop("slidesparse_config")),
        "was not written by slideconvert",
    ),
    "an unfinished conversion": (lambda out: (out / ".slideconvert-partial").mkdir(), "is an unfinished conversion"),
    "nothing": (shutil.rmtree, "is not a folder"),
    "a file": (lambda out: (shutil.rmtree(out), out.write_text("")), "is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_stay_here(mine: HubServer, cli: Cli, out: Path, name: str) -> None:
    spoil, words = FOLDERS[name]
    (out.parent / "secret").write_text("secret")
    spoil(out)
    for more in ([], ["--dry-run"], ["--verify"]):
        line = complaint(cli("push", out, REPO, "-q", *more))
        assert words in line, line
    assert not mine.repos and {r.method for r in mine.requests} == {"GET"}


def test_a_source_stays_here(mine: HubServer, cli: Cli, source: Path) -> None:
    assert "was not written by slideconvert" in complaint(cli("push", source, REPO, "-q"))


def test_verify_finds_a_weight_that_no_hash_tells(mine: HubServer, cli: Cli, source: Path, tmp_path: Path) -> None:
    """Hashes that were made to fit: only the weights themselves tell."""
    from tests.helpers.hub_repo import sha256

    out = tmp_path / "out"
    assert cli("convert", *MAGNITUDE, source, out, "--no-verify", "--layout", "dense").code == 0
    path = out / "model.safetensors"
    spoiled = pico.read(out)
    spoiled["model.layers.1.mlp.up_proj.weight"][:] = 1
    from safetensors.torch import save_file

    save_file(spoiled, path)
    digest = {"model.safetensors": sha256(path.read_bytes())}
    record(out, lambda said: said["files"].update(digest))
    edit(out / "report.json", lambda report: report["files"].update(digest))
    hashed = {"report.json": sha256((out / "report.json").read_bytes())}
    edit_config(out, lambda config: config["slidesparse_config"]["reports"].update(hashed))
    for name in ("README.md", "report.html"):
        (out / name).unlink()
    failed = cli("push", out, REPO, "-q", "--verify")
    assert failed.code == 1 and "model.layers.1.mlp.up_proj" in failed.err and "nothing was published" in failed.err
    assert not mine.repos


# ---- where we may not write


@pytest.mark.parametrize("name", ["a/b/c", "me/", "/pico", "me/pi co", "../pico", "me/pico.git", "me/--x", "", "me/é"])
def test_names_that_cannot_be(mine: HubServer, cli: Cli, out: Path, name: str) -> None:
    assert f"'{name}' is not a repository name (a repository name" in complaint(cli("push", out, name, "-q"))
    assert not mine.requests


@pytest.mark.parametrize("branch", ["0" * 40, "refs/pr/1", " "])
def test_what_is_no_branch(mine: HubServer, cli: Cli, out: Path, branch: str) -> None:
    assert "is not a branch" in complaint(cli("push", out, REPO, "-q", "--revision", branch))
    assert not mine.requests


def test_an_empty_message(mine: HubServer, cli: Cli, out: Path) -> None:
    assert "--message is empty" in complaint(cli("push", out, REPO, "-q", "--message", " "))


PLACES = {
    "nobody of ours": (Account("me"), "them/pico", "not create one for them (check the name; this token has"),
    "an organization where we read": (Account("me", {"guests": "read"}), "guests/pico", "not create one for guests"),
    "a token that reads": (Account("me", role="read"), REPO, "the token of me is read-only (create a token"),
    "a fine token for others": (
        Account("me", {"lab": "write"}, role="fineGrained", scopes=("lab",)), REPO, "may not create repositories for me"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_where_we_may_not_make_one(mine: HubServer, cli: Cli, source: Path, out: Path, name: str) -> None:
    account, repo, words = PLACES[name]
    mine.add_account(TOKEN, account)
    assert words in complaint(cli("push", out, repo, "-q"))
    started = out.with_name("started")
    assert words in complaint(cli("convert", *MAGNITUDE, source, started, "-q", "--push", repo))
    assert not started.exists() and not mine.repos


def test_a_fine_token_that_may(mine: HubServer, cli: Cli, out: Path) -> None:
    mine.add_account(TOKEN, Account("me", {"lab": "write"}, role="fineGrained", scopes=("lab",)))
    assert cli("push", out, "lab/pico", "-q").code == 0


@pytest.mark.parametrize("gated", [False, True])
def test_a_repository_of_others(mine: HubServer, cli: Cli, out: Path, gated: bool) -> None:
    mine.add_repo("them/model", MODEL, gated=gated)
    assert "them/model: this token has no write access (HTTP 403: You don't" in complaint(
        cli("push", out, "them/model", "-q")
    )
    assert mine.repos["them/model"].head() == MODEL


def test_a_right_that_only_creating_tells(mine: HubServer, cli: Cli, out: Path) -> None:
    refused = {"X-Error-Message": "You have reached your repository creation limit"}
    mine.faults.append(Fault("/repos/create", method="POST", status=403, headers=refused))
    assert "(HTTP 403: You have reached your repository creation limit)" in complaint(cli("push", out, REPO, "-q"))


def test_no_token(mine: HubServer, cli: Cli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "no token found, and uploads to the Hub require one" in complaint(cli("push", out, REPO, "-q"))
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "the Hub refuses the token: it is wrong or expired" in complaint(cli("push", out, REPO, "-q"))
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True, exist_ok=True)
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    assert cli("push", out, REPO, "-q").code == 0  # as `hf auth login` leaves it


def test_offline(mine: HubServer, cli: Cli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert f"{REPO}: HF_HUB_OFFLINE forbids access to the Hub" in complaint(cli("push", out, REPO, "-q"))
    assert not mine.requests


# ---- convert --push


def test_checked_before_the_conversion(mine: HubServer, cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert = ("convert", *MAGNITUDE, source, out, "-q")
    mine.add_repo(REPO, MODEL)
    for words, said in (
        (("--push", "a/b/c"), "is not a repository name"),
        (("--push", REPO), "already holds a checkpoint on main"),
        (("--push", "me/new", "--no-verify"), "publishes only what was verified"),
        (("--public",), "--public belongs to --push"),
    ):
        assert said in complaint(cli(*convert, *words))
        assert not out.exists() and list(mine.repos) == [REPO]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_push_that_fails_after_the_conversion(
    mine: HubServer, cli: Cli, source: Path, tmp_path: Path, as_json: bool
) -> None:
    out = tmp_path / "out"
    refused = {"X-Error-Message": "no rights any more"}
    mine.faults.append(Fault("/commit/main", method="POST", status=403, headers=refused))
    more = ["--json"] if as_json else []
    failed = cli("convert", *MAGNITUDE, source, out, "--push", REPO, "--public", *more)
    line = complaint(failed)
    command = f"slideconvert push {out} {REPO} --public"
    assert (
        "no rights any more" in line and f"the checkpoint in {out} is complete: `{command}` continues from here" in line
    )
    if as_json:
        told = json.loads(failed.out)
        assert told["pushed"]["error"]["exit_code"] == failed.code and told["verified_tensors"]
    else:
        assert "tensors re-read, intact" in failed.out
    mine.requests.clear()
    assert cli(*command.split()[1:]).code == 0 and is_published(mine.repos[REPO], out) and not sent(mine)
