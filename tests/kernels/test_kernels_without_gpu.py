"""The Triton kernels where there is no GPU: interpreted against their references, and compiled for GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")


@pytest.mark.parametrize("script", ["interpreted_kernels", "compiled_kernels"])
def test_kernels(script: str, tmp_path: Path) -> None:
    settings = {"TRITON_INTERPRET": "1"} if script == "interpreted_kernels" else {}
    settings["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", f"tests.helpers.{script}"],
        cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_native_call_is_built_and_reports_what_failed() -> None:
    """Built by the machine's compiler; with launch functions that fail, it says which."""
    import ctypes

    from slideconvert.kernels.backends import native

    entry = native.entry()
    assert entry is not None
    launches: list[int] = []
    failing = 0

    @ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 11)
    def launch(function: int, *_: int) -> int:
        launches.append(function)
        return 7 if function == failing else 0

    @ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 11)
    def matmul(*_: int) -> int:
        launches.append(3)
        return 7 if failing == 3 else 0

    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in (launch, matmul)]
    settled = native.Settled(*addresses, 5, 6, 1, 2, 256, 512, 1024, 16, 128, 0, 128, 0, 8, 1)
    for place, status, called in ((0, 0, [1, 3, 2]), (1, 1007, [1]), (3, 2007, [1, 3]), (2, 3007, [1, 3, 2])):
        failing = place
        launches.clear()
        assert entry(ctypes.addressof(settled), 9, *range(1, 8)) == status
        assert launches == called
