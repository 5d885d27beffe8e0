"""The CUDA producer of few tokens, without a GPU: its source compiles for every generation, for every producer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.kernel import SINCE, FewTokens
from slideconvert.kernels.producers.interleaved import SOURCE, constants
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.produced import PRODUCERS

TARGETS = {"sm_80": (8, 0), "sm_86": (8, 6), "sm_89": (8, 9), "sm_90": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0)}
KINDS = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.skipif(bool(nvrtc.missing()), reason="NVRTC is not installed here")
@pytest.mark.parametrize("target", TARGETS)
def test_every_generation_compiles(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = [dtype for dtype, since in SINCE.items() if since <= TARGETS[target]]
    for number, (length, dense) in enumerate(
        ((4, False), (6, False), (8, False), (10, False), (4, True), (None, False))
    ):
        spec = SlideSpec(64, 3584, length, codes[number % len(codes)])
        operand = FewTokens(spec, torch.device("cuda", 0), dense=dense).operand(17)
        assert operand.interleaved == 32 and operand.width % operand.multiple == 0
        settled = constants(PRODUCERS[number], operand, KINDS[number % 3])
        assert nvrtc.machine_code(SOURCE, settled, target)[:4] == b"\x7fELF"
