"""Checkpoints of every format, for the tests of verify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideconvert.convert.pipeline import convert
from tests.helpers import pico
from tests.helpers.calibrated import plan_for, write_model, write_text

GROUPS: dict[str, Any] = {"pattern": None, "group_size": "8", "scheme": "w4a16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pico model and three conversions of it to 2:L; a livelier one and, in groups: `solved`, what gqsa makes of
    it; `sparse`, it in bfloat16 without half of its groups; `gqs` and `dense`, that rounded to nearest, whose weights
    can be told from the source one by one; `whole`, the model rounded."""
    folder = tmp_path_factory.mktemp("verify")
    lively, text = write_model(folder / "lively", num_hidden_layers=2), write_text(folder / "text.jsonl")
    halved = GROUPS | {"sparsity": "0.5"}
    two_in_l = {"source": pico.write(folder / "pico"), "method": "magnitude"}
    made: dict[str, dict[str, Any]] = {
        "slide": {**two_in_l, "pattern": "2:6", "layout": "slide"},
        "fp8": {**two_in_l, "scheme": "fp8"},
        "int8": two_in_l,
        "solved": {"source": lively, "text": text, "method": "gqsa", **halved, "layout": "gqs"},
        "sparse": {"source": lively, "text": text, "method": "saliency", **halved, "scheme": "bf16"},
        "gqs": {"source": folder / "sparse", "method": "rtn", **GROUPS, "layout": "gqs"},
        "dense": {"source": folder / "sparse", "method": "rtn", **GROUPS},
        "whole": {"source": lively, "method": "rtn", **GROUPS | {"pattern": "2:inf"}},
    }
    for name, words in made.items():
        convert(plan_for(**words), folder / name)
    return {name: folder / name for name in ("pico", "lively", *made)}


@pytest.fixture
def damaged(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the folders, to damage."""
    return lambda name: shutil.copytree(folders[name], tmp_path / "damaged")
