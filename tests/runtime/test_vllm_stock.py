"""vLLM's own dense kernel as a way: the bits that vLLM's layer gives, on the weight that our dense ways read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.vllm_runner import PLUGIN, start

pytestmark = pytest.mark.vllm


def test_the_stock_way_is_vllms_own_layer(tmp_path: Path) -> None:
    """FP8, whose kernel for CPUs reads codes in rows as CUTLASS does; the INT8 one for CPUs keeps them elsewhere."""
    found = start("vllm_stock.py", {}, tmp_path / "run", PLUGIN).told
    assert found is not None
    here, with_cutlass, error = found["torch.float8_e4m3fn"].pop("of codes")
    assert not here and with_cutlass and error < 2**-6  # outputs are bfloat16, and few codes are others than vLLM's
    assert found["torch.float8_e4m3fn"] == {
        "refusal": "", "same": [True, True], "form": "dense", "no second copy": True,
    }  # fmt: skip
    assert "keeps the weight outside of the layer" in found["torch.int8"]["refusal"]
    assert found["host"][:2] == ["vllm", ["stock"]] and found["host"][2]
