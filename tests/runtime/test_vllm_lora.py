"""LoRA adapters in vLLM on top of our linears, on the CPU."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.helpers.demo import DEMO, both_layouts, text_windows
from tests.helpers.lora import RANK, adapter
from tests.helpers.vllm_runner import ONE_PROCESS, Job, Outcome, run
from tests.runtime.test_vllm_plugin import assert_ours_ran

pytestmark = pytest.mark.vllm

ENGINE = {"dtype": "float32", "enforce_eager": True, "enable_lora": True, "max_lora_rank": RANK}


def test_adapters_run_on_top_of_both_layouts(tmp_path: Path) -> None:
    """One that adds nothing changes nothing, to the bit. Another changes what stock vLLM changes with it on the dense
    layout; the two round activations by other arithmetic, which is a small part of that."""
    checkpoints, ids = both_layouts(DEMO, tmp_path, scheme="int8", pattern="2:8"), text_windows(48, 6).tolist()
    nothing, something = adapter(DEMO, tmp_path / "nothing", 0.0), adapter(DEMO, tmp_path / "something", 0.02)

    def job(name: str, model: Path, lora: Path | None, *, stock: bool = False) -> Outcome:
        asked = Job(
            str(model),
            ids,
            stock=stock,
            adapter=str(lora) if lora else None,
            scored=False,
            engine=ENGINE,
            environment=ONE_PROCESS,
        )
        return run(asked, tmp_path / f"run-{name}")

    plain = job("plain", checkpoints["slide"], None)
    assert_ours_ran(plain, checkpoints["slide"])
    assert told(job("same", checkpoints["slide"], nothing)) == told(plain)
    slide = job("slide", checkpoints["slide"], something)
    assert told(job("dense", checkpoints["dense"], something)) == told(slide)
    stock = job("stock", checkpoints["dense"], something, stock=True)
    changed = difference(slide, plain)
    assert changed > 0.1 and difference(slide, stock) < changed / 10


def told(outcome: Outcome) -> tuple[list[list[int]], list[float]]:
    return outcome.results["greedy"], outcome.results["first"]


def difference(left: Outcome, right: Outcome) -> float:
    """Between the logprobs of the first tokens, on average."""
    return statistics.fmean(abs(a - b) for a, b in zip(left.results["first"], right.results["first"], strict=True))
