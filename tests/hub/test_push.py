"""A checkpoint goes up in one commit, whole, and comes back as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from slideconvert.errors import TRY_AGAIN
from slideconvert.hub.account import Target, find_target
from slideconvert.hub.publish import carry_out, is_checkpoints, plan_push, read_folder
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO, TEXT
from tests.helpers.hub_models import MODEL, WEIGHTS
from tests.helpers.hub_repo import Fault
from tests.helpers.hub_server import HubServer
from tests.helpers.hub_upload import GIT_ATTRIBUTES
from tests.helpers.pushing import REPO, SHARDS, complaint, digests, is_published, sent, shards

pytest_plugins = ["tests.helpers.hub_fixtures", "tests.helpers.push_fixtures"]


def test_a_new_repository(mine: HubServer, cli: Cli, out: Path) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = cli("push", out, REPO, "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    repo = mine.repos[REPO]
    assert repo.private and is_published(repo, out)
    assert repo.head().keys() == {".gitattributes", *(path.relative_to(out).as_posix() for path in before)}
    assert len(repo.commits) == 2  # that which made the repository, and ours
    assert list(repo.messages.values()) == ["2:8 INT8 of source by slideconvert 0.1.0"]
    assert len(shards(out)) > 2 and sent(mine) == digests(shards(out))
    card = repo.head()["README.md"].decode()
    assert f"vllm serve {REPO}\n" in card and "PATH" not in card
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}  # nothing is written there


@pytest.mark.parametrize("address", ["https://example.org/slideconvert-0.1.0-py3-none-any.whl", "git+https://a.b/c@v1"])
def test_the_card_installs_slideconvert_from_where_the_publisher_says(
    mine: HubServer, cli: Cli, out: Path, address: str
) -> None:
    assert cli("push", out, REPO, "--package", address).code == 0
    card = mine.repos[REPO].head()["README.md"].decode()
    assert f"pip install {address}\n" in card and "PACKAGE" not in card
    assert is_published(mine.repos[REPO], out)


@pytest.mark.parametrize(
    "address",
    [
        *("slideconvert", "slideconvert==0.1.0", "http://a.b/c.whl", "https://a.b/c.tar.gz", "git+ssh://a.b/c", ""),
        *(
            "https://me:secret@a.b/c.whl",
            "git+https://a.b/c d",
            "git+https://a.b/`c`",
            "https:///c.whl",
            "./c.whl",
            "https://me:secret@a.b/c",
            "https://[.whl",
        ),
    ],
)
def test_a_package_that_not_everybody_can_install_is_refused(
    mine: HubServer, cli: Cli, out: Path, address: str
) -> None:
    refused = cli("push", out, REPO, "--package", address)
    assert refused.code == 2 and "--package" in refused.err and "secret" not in refused.err
    assert not mine.repos and not mine.requests


def test_a_downloaded_push_is_sound(mine: HubServer, cli: Cli, tmp_path: Path) -> None:
    assert cli("convert", *MAGNITUDE, DEMO, tmp_path / "demo").code == 0
    assert cli("push", tmp_path / "demo", REPO).code == 0
    folder = huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "copy", endpoint=mine.url)
    assert cli("verify", folder, "--source", DEMO).code == 0
    # The commands of the card, which name the repository.
    assert cli("generate", REPO, "--prompt", "def ", "--max-new-tokens", "4").code == 0
    assert cli("relayout", REPO, tmp_path / "dense", "--layout", "dense").code == 0
    assert cli("push", folder, REPO).code == 2  # the card there names the repository, not the folder
    (Path(folder) / "README.md").unlink()
    assert json.loads(cli("push", folder, REPO, "--json").out)["bytes_new"] == 0


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("public", [True, False])
def test_visibility(mine: HubServer, cli: Cli, out: Path, existing: bool, public: bool) -> None:
    if existing:
        mine.add_repo(REPO, {"notes.txt": b"mine"}, private=public)
    told = cli("push", out, REPO, *(["--public"] if public else []))
    assert told.code == 0
    assert mine.repos[REPO].private is (public if existing else not public)
    words = {
        (True, True): "private (--public leaves existing repositories as they are)",
        (True, False): "public",
        (False, True): "a new repository, public",
        (False, False): "a new repository, private",
    }
    assert f"{REPO}, {words[existing, public]}\n" in told.out


def test_a_name_alone_is_ours_and_organizations_work(mine: HubServer, cli: Cli, out: Path) -> None:
    assert cli("push", out, "pico-2of8").code == 0 and is_published(mine.repos[REPO], out)
    assert cli("push", out, "lab/pico").code == 0 and is_published(mine.repos["lab/pico"], out)


def test_dry_run_changes_nothing(mine: HubServer, cli: Cli, out: Path) -> None:
    told = cli("push", out, REPO, "--dry-run")
    assert told.code == 0 and not mine.repos and {r.method for r in mine.requests} == {"GET"}
    first = shards(out)[0]
    row = next(line for line in told.out.splitlines() if first.name in line)
    assert row.split() == [first.name, "new", digests([first])[0][:12], f"{first.stat().st_size:,}"]
    assert "a new repository, private" in told.out and " to be sent, " in told.out and "; 0 already there" in told.out

    assert cli("push", out, REPO).code == 0
    mine.requests.clear()
    told = cli("push", out, REPO, "--dry-run", "--json")
    found = json.loads(told.out)
    assert {file["state"] for file in found["files"]} == {"there"} and found["bytes_new"] == 0
    assert found["dry_run"] and found["commit"] is None and {r.method for r in mine.requests} == {"GET"}


def test_again_sends_and_commits_nothing(mine: HubServer, cli: Cli, out: Path) -> None:
    first = json.loads(cli("push", out, REPO, "--json", "--message", "Words of mine").out)
    assert first["bytes_new"] == sum(file["bytes"] for file in first["files"])
    assert mine.repos[REPO].messages == {first["commit"]: "Words of mine"}
    mine.requests.clear()
    again = json.loads(cli("push", out, REPO, "--json").out)
    assert (again["commit"], again["bytes_new"]) == (first["commit"], 0) and not sent(mine)
    assert len(mine.repos[REPO].commits) == 2


def test_a_new_checkpoint_takes_the_place_of_the_old(mine: HubServer, cli: Cli, source: Path, out: Path) -> None:
    assert cli("push", out, REPO).code == 0
    theirs = {"notes.txt": b"1", "figures/a.png": b"2", "adapter.safetensors": b"3", "kernels/notes.txt": b"4"}
    mine.add_repo(REPO, {**mine.repos[REPO].head(), **theirs, "kernels/old/kernel.py": b"5"})
    smaller = out.with_name("smaller")
    assert cli("convert", *MAGNITUDE, source, smaller, "--pattern", "2:4", "--layout", "dense").code == 0
    told = cli("push", smaller, REPO, "--dry-run", "--json")
    stale = [path.name for path in shards(out)]
    assert json.loads(told.out)["deleted"] == sorted([*stale, "kernels/old/kernel.py", "model.safetensors.index.json"])
    assert is_published(mine.repos[REPO], out)
    mine.requests.clear()
    assert cli("push", smaller, REPO).code == 0
    files = mine.repos[REPO].head()
    assert is_published(mine.repos[REPO], smaller) and not {*stale, "model.safetensors.index.json"} & files.keys()
    assert theirs.items() <= files.items() and sent(mine) == digests(shards(smaller))


@pytest.mark.parametrize("name", ["model.safetensors", "model-00002-of-00003.safetensors", "kernels/x/kernel.py"])
def test_what_an_old_checkpoint_leaves(name: str) -> None:
    assert is_checkpoints(name)


@pytest.mark.parametrize(
    "name",
    ["README.md", ".gitattributes", "tokenizer.json", "original/model.safetensors", "consolidated.00.safetensors",
     "pytorch_model.bin", "my_kernels/x.py", "train.py", "kernels/data.bin", "config.json", "model-1-of-2.safetensors"],
)  # fmt: skip
def test_what_is_never_deleted(name: str) -> None:
    assert not is_checkpoints(name)


def test_published_shards_are_not_sent_again(mine: HubServer, cli: Cli, source: Path, out: Path) -> None:
    assert cli("push", out, REPO).code == 0
    changed = pico.weights()
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1
    pico.write(source, changed)
    again = out.with_name("again")
    assert cli("convert", *MAGNITUDE, source, again, *SHARDS).code == 0
    different = [path for path in shards(again) if path.read_bytes() != (out / path.name).read_bytes()]
    assert len(different) == 1
    mine.requests.clear()
    assert cli("push", again, REPO).code == 0
    assert sent(mine) == digests(different) and is_published(mine.repos[REPO], again)


def test_a_branch(mine: HubServer, cli: Cli, out: Path) -> None:
    """Beside a model of one's own: a branch may take the place of what it starts with, main may not."""
    mine.add_repo(REPO, MODEL)
    assert f"{REPO} already holds a checkpoint on main that slideconvert did not write" in complaint(
        cli("push", out, REPO)
    )
    assert mine.repos[REPO].head() == MODEL
    mine.faults.append(Fault("/commit/int8-2of8", method="POST", status=500))
    complaint(cli("push", out, REPO, "--revision", "int8-2of8"), TRY_AGAIN)
    assert mine.repos[REPO].head("int8-2of8") == MODEL  # made, and as it began: the next run goes on
    told = cli("push", out, REPO, "--revision", "int8-2of9", "--dry-run", "--json")
    assert json.loads(told.out)["deleted"] == sorted(WEIGHTS)
    told = cli("push", out, REPO, "--revision", "int8-2of8")
    assert told.code == 0 and f"{mine.url}/{REPO}/tree/int8-2of8" in told.out
    repo = mine.repos[REPO]
    assert repo.head() == MODEL and is_published(repo, out, "int8-2of8")
    assert "model-00001-of-00002.safetensors" not in repo.head("int8-2of8")
    assert f"vllm serve {REPO} --revision int8-2of8\n".encode() in repo.head("int8-2of8")["README.md"]
    assert cli("push", out, REPO, "--revision", "int8-2of8").code == 0  # it is ours now


def test_a_branch_of_a_new_repository(mine: HubServer, cli: Cli, out: Path) -> None:
    assert cli("push", out, REPO, "--revision", "v1/int8", "--public").code == 0
    repo = mine.repos[REPO]
    assert is_published(repo, out, "v1/int8") and repo.head() == GIT_ATTRIBUTES and not repo.private


def test_addresses_are_shown_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://user:s3cret@hub.example:8443/models/")
    assert Target(REPO, "v1").url == f"https://hub.example:8443/models/{REPO}/tree/v1"


def test_large_files_in_parts(mine: HubServer, cli: Cli, out: Path) -> None:
    mine.part_size = 20_000
    assert cli("push", out, REPO).code == 0 and is_published(mine.repos[REPO], out)
    parts = sum(-(-path.stat().st_size // 20_000) for path in shards(out))
    assert len(sent(mine)) == parts > len(shards(out))


def test_progress_counts_bytes(mine: HubServer, out: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    mine.part_size = 20_000  # read one after another
    folder = read_folder(out, progress=progress)
    pushed = carry_out(folder, plan_push(folder, find_target(REPO)), public=False, message=None, progress=progress)
    weights = sum(path.stat().st_size for path in shards(out))
    assert told["check"][-1][0] == told["check"][-1][1] > weights
    assert {total for _, total in told["upload"]} == {pushed.upload.bytes}
    done = [done for done, _ in told["upload"]]
    assert done[0] == 0 and done[-1] == pushed.upload.bytes and len(set(done)) > len(shards(out))
    assert done == sorted(done) and {20_000, 40_000} <= set(done)


def test_convert_and_push(mine: HubServer, cli: Cli, source: Path, tmp_path: Path) -> None:
    words = ("convert", *MAGNITUDE, source, tmp_path / "out", "--push", REPO, "--public")
    told = cli(*words)
    assert told.code == 0 and is_published(mine.repos[REPO], tmp_path / "out") and not mine.repos[REPO].private
    assert "tensors re-read, intact" in told.out and "every file compared with its hash" in told.out
    shutil.rmtree(tmp_path / "out")
    found = json.loads(cli(*words, "--json").out)
    assert found["pushed"]["repo"] == REPO and found["pushed"]["commit"] == mine.repos[REPO].branches["main"]


def test_unverified_with_verify(mine: HubServer, cli: Cli, source: Path, out: Path) -> None:
    out = out.with_name("unverified")
    assert cli("convert", *MAGNITUDE, source, out, "--no-verify").code == 0
    report = (out / "report.json").read_bytes()
    assert "never verified (--no-verify) (add --verify" in complaint(cli("push", out, REPO)) and not mine.repos
    assert cli("push", out, REPO, "--verify").code == 0
    files = mine.repos[REPO].head()
    assert json.loads(files["report.json"])["verified"] and b"read back and checked" in files["README.md"]
    assert b"NOT VERIFIED" not in files["report.html"].upper() and (out / "report.json").read_bytes() == report


def test_every_kind_of_output_may_go(cli: Cli, source: Path, tmp_path: Path, short_demo: Path) -> None:
    """Stages one by one, both layouts, rules that keep linears or leave them BF16: their reports belong to them."""
    recipe = tmp_path / "recipe.yaml"
    rules = (
        "match: '*.layers.0.*', keep: true",
        "match: '*.o_proj', scheme: fp8",
        "match: '*.down_proj', scheme: bf16",
    )
    lines = ["scheme: int8", "pattern: '2:6'", "method: magnitude", "rules:", *(f"- {{{rule}}}" for rule in rules)]
    recipe.write_text("\n".join(lines))
    made = {name: tmp_path / name for name in ("sparse", "quantized", "slid", "dense", "mixed", "relaid", "moved")}
    text = ("--calibration", TEXT.with_name("calibration.jsonl"), "--samples", "8", "--length", "64")
    for words in (
        ("sparsify", *MAGNITUDE, source, made["sparse"]),
        ("quantize", made["sparse"], made["quantized"]),
        ("slide", made["quantized"], made["slid"]),
        ("relayout", made["slid"], made["dense"], "--layout", "dense"),
        ("convert", source, made["mixed"], "--recipe", recipe, "--layout", "dense"),
        ("relayout", made["mixed"], made["relaid"], "--layout", "slide"),
        ("convert", short_demo, made["moved"], *text, "--preset", "quality"),
    ):
        done = cli(*words)
        assert done.code == 0, (words, done.err)
    for name, out in made.items():
        folder = read_folder(out)
        assert folder.report.verified, name
        assert {file.name for file in folder.files} >= {path.name for path in shards(out)}
    assert "channel_orders.json" in {file.name for file in read_folder(made["moved"]).files}
