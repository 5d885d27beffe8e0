"""Exit codes tell what is to be corrected first from what the same command may do later."""

from __future__ import annotations

import errno
from pathlib import Path

import httpx
import pytest

from slideconvert.checkpoint.staging import writing
from slideconvert.errors import OutputError
from slideconvert.hub.errors import explain
from slideconvert.hub.upload_errors import explain_upload
from tests.conftest import Cli
from tests.helpers.demo import DEMO

WRONG, LATER = 2, 75
NETWORK = (httpx.ConnectError("no route"), httpx.ConnectTimeout("slow"), httpx.ReadError("cut off"))


@pytest.mark.parametrize("error", NETWORK, ids=lambda error: type(error).__name__)
def test_a_network_that_fails_may_work_later(error: Exception) -> None:
    for explained in (explain(error, "org/model"), explain_upload(error, "org/model")):
        assert explained and explained.exit_code == LATER


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, LATER), (errno.EDQUOT, LATER), (errno.EACCES, WRONG), (errno.EROFS, WRONG)]
)
def test_a_full_disk_may_have_space_later_and_a_forbidden_one_not(number: int, code: int) -> None:
    explained = explain(OSError(number, "no"), "org/model")
    assert explained and explained.exit_code == code
    with pytest.raises(OutputError) as refused, writing(Path("out")):
        raise OSError(number, "no")
    assert refused.value.exit_code == code


def test_an_unreachable_hub_ends_a_command_with_75(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert cli("download", "org/model", tmp_path / "model").code == LATER


def test_an_unreachable_calibration_text_ends_a_command_with_75(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    outcome = cli("convert", DEMO, tmp_path / "out", "--calibration", "org/set", "--samples", "2", "--length", "8")
    assert outcome.code == LATER and "calibration text: data set org/set cannot be read: no route" in outcome.err


def test_the_codes_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    for code in (0, 1, WRONG, 70, LATER, 130):
        assert f"| {code} | " in page
