"""A source that is replaced while a conversion works: nothing is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from slideconvert.convert import pipeline
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.calibrated import write_model


def replaced(path: Path) -> None:
    """By a file of the same size and content, as a download that was run again would."""
    beside = path.with_name("beside")
    beside.write_bytes(path.read_bytes())
    beside.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda source: replaced(source / "model.safetensors"),
    "config.json": lambda source: (source / "config.json").write_text((source / "config.json").read_text() + " "),
    "generation_config.json": lambda source: (source / "generation_config.json").unlink(),
    "tokenizer.json": lambda source: (source / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("stage", ["convert_linear", "finish"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_source_that_changes_is_not_published(
    cli: Cli, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str, calibrated: bool
) -> None:
    source = write_model(tmp_path / "source")
    real, once = getattr(pipeline, stage), Lock()

    def meanwhile(*args: Any) -> Any:
        result = real(*args)
        if once.acquire(blocking=False):  # linears are converted by several threads
            CHANGES[name](source)
        return result

    monkeypatch.setattr(pipeline, stage, meanwhile)
    out = source.parent / "out"
    how = ("--calibration", text, "--samples", "4", "--length", "16", "--preset", "fast") if calibrated else MAGNITUDE
    outcome = cli("convert", source, out, *how, "-q")
    assert outcome.code == 2 and f"{name} changed while it was read" in outcome.err, outcome
    assert not list(out.glob("*.safetensors")) and not (out / "config.json").exists()


def test_a_source_that_stays_is_published(cli: Cli, source: Path) -> None:
    assert cli("convert", *MAGNITUDE, source, source.parent / "out", "-q").code == 0
    assert pico.read(source.parent / "out")
