"""The pass that fuses norms and gated activations in vLLM's graphs: in graphs of vLLM's own operators, compiled by
Inductor on a CPU. There vLLM's engine makes no such graphs: whole models are compared on a GPU (test_vllm_gpu.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.demo import DEMO, converted, text_windows
from tests.helpers.vllm_runner import ONE_PROCESS, PLUGIN, Job, run, start

pytestmark = pytest.mark.vllm

FUSED = {
    # norms and linears that are left, and operators that took their places
    "layer": (0, 0, 2),
    "read_twice": (0, 0, 1),
    "read_by_another": (1, 1, 0),
    "read_by_groups": (1, 1, 0),
    "read_by_a_way_that_quantizes": (1, 1, 0),
    "without_weight": (1, 1, 0),
    "of_a_part": (1, 1, 0),
    "of_another_dtype": (1, 1, 0),
    "sum_not_taken": (0, 0, 1),
    "mlp": (0, 0, 2),
    "gate_of_a_sum": (0, 0, 1),
    "gate_read_by_another": (0, 2, 0),
    "gate_read_by_groups": (0, 2, 0),
    "gate_of_other_halves": (0, 2, 0),
    "gate_of_another_width": (0, 2, 0),
    "another_gate": (0, 2, 0),
}


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 0.0), ("bfloat16", 2**-5)])
def test_what_nothing_but_our_linears_reads(tmp_path: Path, dtype: str, allowed: float) -> None:
    """In float32 the fused models give the bits of the eager ones. In bfloat16 vLLM normalizes a sum before it is
    rounded, so that codes differ by one: outputs then by less than four of 127."""
    told = start("vllm_fusion_job.py", {"dtype": dtype}, tmp_path / "run", PLUGIN).results
    assert told.pop("installed") == {
        "compiled": ["FusedProducers", ["producers"]], "otherwise": ["NoneType", []], "with a pass": ["Theirs", []]
    }  # fmt: skip
    assert told.keys() == FUSED.keys()
    for name, counts in FUSED.items():
        operators = told[name]["operators"]
        found = [sum(word in one for one in operators) for word in ("vllm_ir.", "base.linear", "base.produced")]
        assert tuple(found) == counts, (name, operators)
        if counts[2]:
            assert told[name]["worst"] <= allowed, name


def test_the_log_says_where_vllm_has_no_graphs_to_fuse_in(tmp_path: Path) -> None:
    """Asked or not; and the model runs as one in which nothing is to be fused."""
    out = converted(DEMO, tmp_path / "out", scheme="int8", pattern="2:8")
    said = {}
    for name, asked in {"asked": {"SLIDESPARSE_FUSE": "1"}, "default": {}, "off": {"SLIDESPARSE_FUSE": "0"}}.items():
        job = Job(
            str(out), text_windows(16, 1).tolist(), engine={"dtype": "float32", "enforce_eager": True},
            environment={**ONE_PROCESS, **asked},
        )  # fmt: skip
        said[name] = run(job, tmp_path / name)
    for name in ("asked", "default"):
        assert said[name].results["logprobs"] == said["off"].results["logprobs"]
        assert "norms and gates are not fused: vLLM compiles in mode" in said[name].said
    assert "not fused" not in said["off"].said
