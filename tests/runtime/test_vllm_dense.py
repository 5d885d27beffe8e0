"""Stock vLLM on the CPU, without slideconvert: it serves the dense layout as we say and refuses the slide layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.demo import DEMO, DOWN_2_6, FP8_LATE, KEEP_FIRST, converted, text_windows
from tests.helpers.vllm_runner import ONE_PROCESS, STOCK, STOCK_INT8, Job, Outcome, log_probabilities, run, start

pytestmark = pytest.mark.vllm

RECIPES: dict[str, dict[str, Any]] = {
    "int8": {"scheme": "int8", "pattern": "2:8"},
    "fp8": {"scheme": "fp8", "pattern": "2:8"},
    "mixed": {"scheme": "int8", "pattern": "2:8", "rules": [KEEP_FIRST, DOWN_2_6, FP8_LATE]},
}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return text_windows(64, 1)[0]


def served(model: Path, tokens: Tensor, dtype: str) -> Outcome:
    engine = {"dtype": dtype, "enforce_eager": True}
    job = Job(str(model), [tokens.tolist()], greedy=1, stock=True, engine=engine, environment=ONE_PROCESS)
    return run(job, model.with_name("served"))


def ours(model: Path, tokens: Tensor, dtype: torch.dtype = torch.float32, activations: str = "quantized") -> Tensor:
    """The same by our loader."""
    return log_probabilities(model, [tokens.tolist()], dtype, activations)[0]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("int8", "float32", marks=STOCK_INT8), ("fp8", "float32"),
        *(pytest.param("mixed", dtype, marks=STOCK_INT8) for dtype in ("float32", "bfloat16")),
    ],
)  # fmt: skip
def test_dense_layout_is_served_as_our_reference_computes(
    tmp_path: Path, tokens: Tensor, name: str, dtype: str
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
    expected, found = ours(model, tokens), served(model, tokens, dtype).logprobs[0]
    difference = found - expected
    if dtype == "float32":
        assert difference.abs().mean() < (ours(model, tokens, activations="float") - expected).abs().mean()
    else:
        noise = ours(model, tokens, torch.bfloat16) - expected
        assert difference.abs().mean() < 2 * noise.abs().mean()
        assert difference.mean().abs() < 3 * noise.square().mean().sqrt() / math.sqrt(len(noise))
    assert found.mean() > -5  # sane at all: guessing among 2048 tokens would give -7.6


def test_slide_layout_is_refused_not_misread(tmp_path: Path) -> None:
    lines = []
    for scheme in ("int8", "fp8"):
        model = converted(DEMO, tmp_path / scheme, scheme=scheme, pattern="2:8", layout="slide")
        lines.append(["--model", str(model), "--enforce-eager", "--max-model-len", "8"])
    outcome = start("vllm_configs.py", {"lines": lines, "load": True}, tmp_path / "run", STOCK)
    assert outcome.told is not None, outcome.said
    for found in outcome.told:
        assert found["error"].startswith("NotImplementedError: No compressed-tensors compatible scheme was found")
        assert "slide-packed" in found["error"]
