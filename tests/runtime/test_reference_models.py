"""The whole job on models that were really trained, where there are some: SLIDECONVERT_MODELS names their folder.

SLIDECONVERT_MODELS=models pytest -m slow tests/runtime/test_reference_models.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.evaluate.perplexity import perplexity
from slideconvert.models.load import load_model, load_tokenizer
from slideconvert.texts.read import read_documents
from slideconvert.texts.tokens import token_sequences
from tests.conftest import MAGNITUDE, Cli
from tests.runtime.test_stock_transformers import (
    assert_same_logits,
    assert_weights_as_written,
    stock,
    unquantized_activations,
    without_us,
)

pytestmark = pytest.mark.slow
__all__ = ["without_us"]  # a fixture, which works where it is imported

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


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("model", [path for path in models() if path.name == "bitnet"], ids=lambda path: path.name)
def test_bitnet_loses_nothing_unpruned(cli: Cli, tmp_path: Path, model: Path, scheme: str) -> None:
    """Perplexity within 0.01 of transformers' BitNet that ternarizes as it runs. INT8 also with activations
    rounded on both sides; FP8 rounds them to other numbers than it was trained with."""
    text = model.parent.parent / "text" / "evaluation.jsonl"
    source = Checkpoint.open(model)
    tokens = token_sequences(load_tokenizer(source), read_documents(str(text)), 512, 40)
    out, online = tmp_path / "out", tmp_path / "online"
    assert cli("convert", model, out, "--scheme", scheme, "--pattern", "2_inf").code == 0
    shutil.copytree(model, online, copy_function=shutil.copyfile)
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    words = {**json.loads((model / "config.json").read_text()), "quantization_config": quantization}
    (online / "config.json").write_text(json.dumps(words))
    with torch.compiler.set_stance("force_eager"):
        expected = perplexity(AutoModelForCausalLM.from_pretrained(online, dtype=torch.float32).eval(), tokens)
        if scheme == "int8":
            made = perplexity(load_model(Checkpoint.open(out)), tokens)
            assert abs(made - expected) < 0.01
    both = [
        perplexity(load_model(checkpoint, activations="float"), tokens) for checkpoint in (source, Checkpoint.open(out))
    ]
    assert both[0] == both[1]
