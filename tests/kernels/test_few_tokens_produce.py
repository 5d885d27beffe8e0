"""What makes the codes of few tokens, without a GPU: its blocks hold every column, it compiles for every generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slideconvert.kernels import nvrtc
from slideconvert.kernels.few_tokens.kernel import SINCE, FewTokens
from slideconvert.kernels.few_tokens.produce import CLUSTERS_SINCE, MOST_QUANTIZERS, SOURCE, Blocks, constants
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.disassembled import TARGETS
from tests.helpers.produced import PRODUCERS

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
        blocks = Blocks.of(operand, clusters=TARGETS[target] >= CLUSTERS_SINCE)
        settled = constants(PRODUCERS[number], operand, KINDS[number % 3], blocks)
        assert nvrtc.machine_code(SOURCE, settled, target)[:4] == b"\x7fELF"


@pytest.mark.parametrize("clusters", [False, True])
def test_threads_hold_all_columns_once(clusters: bool) -> None:
    for columns in (8, 2048, 3584, 8192, 18944, 65536):
        for length in (4, 6, 8, 10, 16, None, 0):
            for tokens in (1, 16, 32, 64):
                op = FewTokens(
                    SlideSpec(64, columns, length or None, torch.int8), torch.device("cuda"), dense=length == 0
                )
                operand = op.operand(tokens)
                blocks = Blocks.of(operand, clusters=clusters)
                share = 32 if length == 0 else 4 * (length or 2)  # columns
                held = blocks.cluster * blocks.threads * blocks.held
                assert (
                    held * share >= columns > (held - blocks.cluster * 32 * blocks.held) * share - operand.multiple * 2
                )
                assert blocks.threads % 32 == 0 and blocks.threads <= MOST_QUANTIZERS
                assert blocks.cluster == 1 or (clusters and blocks.cluster in (4, 8))
