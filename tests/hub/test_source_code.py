"""Checkpoints of ours from the Hub: the code that their config.json lists comes along, checked, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideconvert.errors import HubError
from slideconvert.hub.source import download
from slideconvert.runtime.slidesparse_record import CODE_FILES
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.hub_models import sentence
from tests.helpers.hub_server import HubServer

pytest_plugins = ["tests.helpers.hub_fixtures"]

Files = dict[str, bytes]


@pytest.fixture
def ours(cli: Cli, source: Path, tmp_path: Path) -> Files:
    """The files of a checkpoint of ours."""
    assert cli("convert", source, tmp_path / "converted", *MAGNITUDE).code == 0
    return pico.files(tmp_path / "converted")


def kernels(files: Files) -> dict[str, str]:
    found: dict[str, str] = json.loads(files["config.json"])["slidesparse_config"]["kernels"]
    return found


def relisted(files: Files, change: Callable[[dict[str, str]], Any]) -> Files:
    """The same files, with another list of code in config.json."""
    config = json.loads(files["config.json"])
    change(config["slidesparse_config"]["kernels"])
    return {**files, "config.json": json.dumps(config).encode()}


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_downloaded_checkpoint_verifies(
    cli: Cli, hub: HubServer, source: Path, ours: Files, tmp_path: Path, where: str
) -> None:
    beside = {"kernels/added.py": b"import os", "modeling_other.py": b"import os", "kernels/data.bin": b"pickle"}
    hub.add_repo("org/sparse", {**ours, **beside})
    folder = download("org/sparse", tmp_path / "copy" if where == "folder" else None).path
    assert kernels(ours) and set(CODE_FILES) <= kernels(ours).keys()
    assert not {path.name for path in folder.rglob("*")} & {"added.py", "modeling_other.py", "data.bin"}
    assert all((folder / name).read_bytes() == ours[name] for name in kernels(ours))
    outcome = cli("verify", folder, "--source", source)
    assert outcome.code == 0, outcome.err
    if where == "folder":
        (folder / CODE_FILES[0]).unlink()  # it is part of what was downloaded
        outcome = cli("eval", folder, "--text", "none")
        assert outcome.code == 2 and f"{CODE_FILES[0]} is missing" in outcome.err


@pytest.mark.parametrize(
    "name", ["../evil.py", "/kernels/evil.py", "kernels/../../evil.py", "setup.py", "kernels\\..\\e.py"]
)
def test_code_that_leads_elsewhere_is_refused(hub: HubServer, ours: Files, tmp_path: Path, name: str) -> None:
    hub.add_repo("org/sparse", {**relisted(ours, lambda listed: listed.update({name: "0" * 64})), name: b"import os"})
    with pytest.raises(HubError) as error:
        download("org/sparse", tmp_path / "copy")
    assert f"config.json lists {name}: no place for a checkpoint's code" in sentence(error)
    assert "evil.py" not in " ".join(request.path for request in hub.requests)
    assert not list(tmp_path.rglob("evil.py"))


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_changed_code_is_refused_and_deleted(hub: HubServer, ours: Files, tmp_path: Path, where: str) -> None:
    name = max(kernels(ours))
    hub.add_repo("org/sparse", {**ours, name: b"import os"})
    with pytest.raises(HubError) as error:
        download("org/sparse", tmp_path / "copy" if where == "folder" else None)
    assert f"{name} has sha256" in sentence(error) and kernels(ours)[name] in sentence(error)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"import os"]


def test_missing_code_is_left_for_verify_to_tell(cli: Cli, hub: HubServer, ours: Files, tmp_path: Path) -> None:
    name = max(kernels(ours))
    hub.add_repo("org/sparse", {path: content for path, content in ours.items() if path != name})
    outcome = cli("verify", download("org/sparse", tmp_path / "copy").path)
    assert outcome.code == 1 and f"{name}: file is missing" in outcome.err


@pytest.mark.parametrize("record", [None, [], {"kernels": ["a"]}, {"kernels": None}])
def test_records_that_list_nothing(hub: HubServer, ours: Files, tmp_path: Path, record: object) -> None:
    config = {**json.loads(ours["config.json"]), "slidesparse_config": record}
    hub.add_repo("org/sparse", {**ours, "config.json": json.dumps(config).encode()})
    download("org/sparse", tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("*.py"))
