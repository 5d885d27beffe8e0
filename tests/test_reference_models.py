"""The whole job on models that were really trained, where there are some: SLIDECONVERT_MODELS names their folder.

SLIDECONVERT_MODELS=models pytest -m slow tests/test_reference_models.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.runtime.load import load_model
from tests.conftest import MAGNITUDE, Cli
from tests.test_stock_transformers import assert_same_logits, assert_weights_as_written, stock, unquantized_activations

pytestmark = pytest.mark.slow

VARIABLE = "SLIDECONVERT_MODELS"
PATTERNS = ("2_4", "2_6", "2_8", "2_10", "2_inf")


def models() -> list[Path]:
    folder = Path(os.environ.get(VARIABLE, ""))
    return sorted(path.parent for path in folder.glob("*/config.json")) if VARIABLE in os.environ else []


if not models():
    pytest.skip(f"{VARIABLE} names no folder with models in it", allow_module_level=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("model", models(), ids=lambda path: path.name)
def test_converts_verifies_and_loads_in_stock_transformers(
    cli: Cli, tmp_path: Path, model: Path, scheme: str, pattern: str
) -> None:
    """Both layouts verified; the dense one, loaded by stock transformers, has our weights and our logits."""
    slide, dense = tmp_path / "slide", tmp_path / "dense"
    outcome = cli("convert", *MAGNITUDE, model, slide, "--scheme", scheme, "--pattern", pattern)
    assert outcome.code == 0
    assert cli("relayout", slide, dense, "--layout", "dense").code == 0
    for out in (slide, dense):
        assert cli("verify", out, "--source", model).code == 0
    theirs = stock(dense)
    assert_weights_as_written(theirs, dense)
    tokens = torch.randint(3, theirs.config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(0))
    ours = load_model(Checkpoint.open(slide), activations="float")
    assert_same_logits(ours, unquantized_activations(theirs), tokens)
