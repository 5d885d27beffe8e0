"""What becomes of ways that cannot be measured or compiled: one clear line, and no time; without a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert.kernels import nvrtc
from slideconvert.kernels.backends import measure
from slideconvert.kernels.backends.group_gemm import GroupGemmBackend
from slideconvert.kernels.backends.measure import GraphClock, behind_a_writer
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.fake_gpu import CUDA, FakeStock, FewDense

SPEC = SlideSpec(64, 96, 8, torch.int8)
NEEDED = 16384 * (4 * 96 + 6 * 64)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> GraphClock:
    """A clock without a device: memory for 16384 tokens twice over, and a microsecond for every call."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2 * NEEDED, 4 * NEEDED))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(GraphClock, "_time", lambda self, way, tokens: 1.0)
    return GraphClock(SPEC, CUDA)


def test_calls_that_take_half_of_the_free_memory_are_not_made(
    clock: GraphClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = FakeStock(SPEC, CUDA)
    assert clock(way, 16384) == 1.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2 * NEEDED - 2, 4 * NEEDED))
    assert clock(way, 16384) is None and clock(way, 8192) == 1.0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory"),
        (nvrtc.NvrtcError("kernel.cu does not compile (-D):\nlog"), "kernel.cu does not compile (-D):"),
        (ValueError("64 tokens take more shared memory"), "64 tokens take more shared memory"),
    ],
    ids=["memory", "compiler", "shape"],
)
def test_a_way_that_fails_has_no_time_and_says_so_once(
    clock: GraphClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    def fail(self: Any, way: Any, tokens: int) -> float:
        raise error

    monkeypatch.setattr(GraphClock, "_time", fail)
    way = FewDense(SPEC, CUDA)
    assert [clock(way, tokens) for tokens in (1, 1, 2)] == [None] * 3
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"64x96 int8 2:8: few_dense cannot run 1 tokens and has no part in them: {said}"


def test_few_tokens_are_measured_behind_a_kernel_that_writes_their_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own time is measured once for a number of tokens, and taken off; noise leaves no time of 0."""
    replayed: list[tuple[bool, bool]] = []
    way, given = FewDense(SPEC, CUDA), torch.ones(4, 96)
    ran: list[torch.Tensor] = []
    monkeypatch.setattr(FewDense, "run", lambda self, x, prepared, bias: ran.append(x.clone()))

    def fake(work: Any, weights: Any, warm: float) -> list[float]:
        calls = len(ran)
        given.fill_(7)
        work(())
        replayed.append((len(ran) > calls, bool((given != 7).all())))
        return [4.0, 5.0, 7.0] if replayed[-1][0] else [cost]

    def added(x: torch.Tensor) -> list[float]:
        return behind_a_writer(lambda prepared: way.run(x, prepared, None), x, [], 0.0, writing)

    monkeypatch.setattr(measure, "replayed", fake)
    writing: dict[int, float] = {}
    cost = 2.0
    assert added(given) == [2.0, 3.0, 5.0]
    assert replayed == [(True, True), (False, True)] and (ran[0] == 1).all()
    given.fill_(1)
    assert added(given) == [2.0, 3.0, 5.0] and replayed[2:] == [(True, True)]
    cost = 6.0
    assert min(added(torch.ones(2, 96))) > 0


def test_defects_are_not_taken_for_slowness(clock: GraphClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, way: Any, tokens: int) -> float:
        raise TypeError("a defect")

    monkeypatch.setattr(GraphClock, "_time", broken)
    with pytest.raises(TypeError):
        clock(FewDense(SPEC, CUDA), 1)


def test_a_missing_compiler_and_an_old_gpu_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GroupSpec(8, 96, 16, 4, 8, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(nvrtc, "architecture", lambda capability: _old(capability))
    assert "knows no architecture as old as sm_80" in GroupGemmBackend.refusal(spec, CUDA)
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc, "NAMES", ("libnowhere.so",))
    monkeypatch.setattr(nvrtc, "_folders", lambda: [Path("/nowhere")])
    assert "NVRTC was not found (pip install nvidia-cuda-nvrtc)" in GroupGemmBackend.refusal(spec, CUDA)
    nvrtc.library.cache_clear()


def _old(capability: tuple[int, int]) -> str:
    raise nvrtc.NvrtcError(f"NVRTC (14, 0) knows no architecture as old as sm_{capability[0]}{capability[1]}")
