"""Benchmarks on a GPU: every way runs, is right, and is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slideconvert.api.bench import Benched, bench_kernel, bench_layer
from slideconvert.api.options import BenchOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("run", [bench_kernel, bench_layer], ids=["kernel", "layer"])
def test_every_way_runs_on_a_gpu(tmp_path: Path, run: Callable[[BenchOptions], Benched]) -> None:
    options = BenchOptions(
        model="Llama-3.2-1B", scheme="int8,fp8,bf16", pattern="2:4,2:6,2:8", tokens="1,64,512", out=tmp_path / "out",
        host="transformers",
    )  # fmt: skip
    found = run(options)
    failed = {(row.case.precision, row.case.way, row.failure) for row in found.results.rows.values() if row.failure}
    # Nothing was tuned here, and products of those that quantize for themselves are not alone.
    assert all("slideconvert tune" in why or "no product alone" in why for _, _, why in failed), failed
    ways = {row.case.way for row in found.results.rows.values() if row.times}
    assert {"dense", "cusparselt", "linear", "torch_sparse"} <= ways
    assert found.results.ceilings["copy_bytes_per_second"] > 1e11
    for table in found.tables:
        assert table.tokens == [1, 64, 512] and set(table.patterns) == {"2:4", "2:6", "2:8"}
    for row in found.results.rows.values():
        if row.times:
            assert 0 < row.times.low <= row.times.device <= row.times.high
