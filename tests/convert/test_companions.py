"""Files that are copied with a model: under which names, and that none is taken from outside its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico

FILES = {
    "LICENSE.txt": "MIT", "License-Models.md": "other", "notice": "by us", "Tokenizer.model": "pieces",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
}  # fmt: skip
LEFT = {"notes.txt": "", "tokenizer.PY": "import os", "additional_chat_templates/tools.py": "", "other/LICENSE": ""}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return pico.write(tmp_path / "model", pico.weights())


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_they_are_copied_whatever_their_case(cli: Cli, model: Path, tmp_path: Path) -> None:
    write(model, FILES | LEFT)
    done = cli("convert", *MAGNITUDE, model, tmp_path / "out")
    assert done.code == 0, done.err
    hashes = json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse_config"]["files"]
    for name, text in FILES.items():
        assert (tmp_path / "out" / name).read_text() == text and name in hashes
    assert not any((tmp_path / "out" / name).exists() for name in LEFT)
    assert cli("verify", tmp_path / "out", "--source", model).code == 0


@pytest.mark.parametrize("command", ["plan", "convert"])
@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE", "additional_chat_templates/tools.jinja"])
def test_a_link_out_of_the_folder_is_refused_before_any_work(
    cli: Cli, model: Path, tmp_path: Path, command: str, name: str
) -> None:
    """Someone else's folder could carry a secret of ours away so."""
    (tmp_path / "secret").write_text("hf_token")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    out = [tmp_path / "out"] if command == "convert" else []
    done = cli(command, *(MAGNITUDE if out else ()), model, *out)
    assert done.code == 2 and f"{name}: a link to" in done.err and "outside the model's folder" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/tools.jinja"])
def test_a_link_to_nothing_is_named(cli: Cli, model: Path, tmp_path: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to("nowhere.json")
    done = cli("convert", *MAGNITUDE, model, tmp_path / "out")
    assert done.code == 2 and f"{name} is a link to nowhere.json, which does not exist" in done.err


def test_links_inside_the_folder_and_of_the_hub_cache_are_followed(cli: Cli, model: Path, tmp_path: Path) -> None:
    """The cache of the Hub: snapshots/<commit>/ with links to blobs/ beside snapshots/. Not to another model's."""
    write(model, FILES)
    (model / "NOTICE").symlink_to("LICENSE.txt")
    cached = tmp_path / "models--org--model"
    (cached / "blobs").mkdir(parents=True)
    (cached / "snapshots").mkdir()
    snapshot = model.rename(cached / "snapshots" / ("a" * 40))
    for path in [path for path in snapshot.rglob("*") if path.is_file() and not path.is_symlink()]:
        blob = cached / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(blob)
    assert cli("convert", *MAGNITUDE, snapshot, tmp_path / "out").code == 0
    assert (tmp_path / "out" / "NOTICE").read_text() == "MIT" and not (tmp_path / "out" / "NOTICE").is_symlink()
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (cached / "blobs" / "LICENSE.txt").rename(other / "LICENSE.txt")
    (cached / "blobs" / "LICENSE.txt").symlink_to(other / "LICENSE.txt")
    done = cli("convert", *MAGNITUDE, snapshot, tmp_path / "again")
    assert done.code == 2 and "LICENSE.txt: a link to" in done.err
