"""LoRA adapters in vLLM on top of our linears, on the CPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.load import load_model
from tests.helpers.demo import DEMO, both_layouts, text_windows
from tests.helpers.lora import RANK, adapter
from tests.helpers.vllm_runner import ONE_PROCESS, Job, Outcome, run
from tests.runtime.test_vllm_plugin import assert_ours_ran

pytestmark = pytest.mark.vllm

ENGINE = {"dtype": "float32", "enforce_eager": True, "enable_lora": True, "max_lora_rank": RANK}


def test_adapters_run_on_top_of_both_layouts(tmp_path: Path) -> None:
    """One that adds nothing changes nothing, to the bit. Another changes what it changes in our own float32 model;
    codes that float32 noise carries across a tie are a small part of that. (Stock vLLM has no LoRA on INT8 on a
    CPU.)"""
    checkpoints, ids = both_layouts(DEMO, tmp_path, scheme="int8", pattern="2:8"), text_windows(48, 6).tolist()
    nothing, something = adapter(DEMO, tmp_path / "nothing", 0.0), adapter(DEMO, tmp_path / "something", 0.02)

    def job(name: str, model: Path, lora: Path | None) -> Outcome:
        words = {"adapter": str(lora) if lora else None, "scored": False, "engine": ENGINE, "environment": ONE_PROCESS}
        return run(Job(str(model), ids, **words), tmp_path / f"run-{name}")

    plain = job("plain", checkpoints["slide"], None)
    assert_ours_ran(plain, checkpoints["slide"])
    assert told(job("same", checkpoints["slide"], nothing)) == told(plain)
    slide = job("slide", checkpoints["slide"], something)
    assert told(job("dense", checkpoints["dense"], something)) == told(slide)
    changed = mean_difference(first_logprobs(checkpoints["dense"], ids, nothing, slide), slide)
    found = mean_difference(first_logprobs(checkpoints["dense"], ids, something, slide), slide)
    assert changed > 0.1 and found < changed / 10


def first_logprobs(model: Path, ids: list[list[int]], lora: Path, outcome: Outcome) -> list[float]:
    """By our own loader with an adapter: of the tokens that came first after each prompt."""
    loaded, tensors = load_model(Checkpoint.open(model)), load_file(lora / "adapter_model.safetensors")
    for name, module in loaded.named_modules():
        place = f"base_model.model.{name}"
        if f"{place}.lora_A.weight" in tensors:
            module.register_forward_hook(added(tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"]))
    with torch.no_grad():
        logprobs = loaded(torch.tensor(ids)).logits[:, -1].double().log_softmax(-1)
    return [float(row[tokens[0]]) for row, tokens in zip(logprobs, outcome.results["greedy"], strict=True)]


def added(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    return lambda _, inputs, output: output + inputs[0] @ down.T @ up.T


def told(outcome: Outcome) -> tuple[list[list[int]], list[float]]:
    return outcome.results["greedy"], outcome.results["first"]


def mean_difference(expected: list[float], outcome: Outcome) -> float:
    return statistics.fmean(abs(a - b) for a, b in zip(expected, outcome.results["first"], strict=True))
