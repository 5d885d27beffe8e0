"""The product of few tokens before its first call, without a GPU: what is compiled, where sums are exchanged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slideconvert.kernels import driver as the_driver
from slideconvert.kernels.backends.base import Dtypes
from slideconvert.kernels.backends.choose import BOTH, choose
from slideconvert.kernels.backends.routed import Routed
from slideconvert.kernels.few_tokens import exchange, kernel
from slideconvert.kernels.few_tokens.exchange import ABSENT, Exchange, Exchanges, address
from slideconvert.kernels.few_tokens.kernel import TILES, Device, FewTokens
from slideconvert.kernels.linear import SlideSparseLinear
from slideconvert.kernels.slide_spec import SlideSpec
from tests.helpers.fake_gpu import CUDA, SERVER, WAYS, FewSparse, fake_gpu

SPEC = SlideSpec(64, 96, 8, torch.int8)
CPU = torch.device("cpu")


class Compiled:
    """In the place of compiled kernels: each waits until all of a model's are being compiled."""

    made: list[tuple[torch.dtype, torch.dtype | None, int]]
    together: threading.Barrier

    def __init__(self, op: FewTokens, dtype: torch.dtype, bias: torch.dtype | None, tiles: int) -> None:
        self.made.append((dtype, bias, tiles))
        self.together.wait(timeout=30)


def test_all_numbers_of_tokens_are_compiled_at_once_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_Launches", Compiled)
    monkeypatch.setattr(Compiled, "made", [], raising=False)
    monkeypatch.setattr(Compiled, "together", threading.Barrier(len(TILES)), raising=False)
    monkeypatch.setattr(Device, "of", lambda device: Device(132, 232448, (9, 0)))
    op = FewTokens(SPEC, CPU)
    op.load(torch.bfloat16)
    op.load(torch.bfloat16)
    assert sorted(tiles for _, _, tiles in Compiled.made) == sorted(TILES)
    op.load(torch.bfloat16, torch.bfloat16)
    assert set(Compiled.made) == {(torch.bfloat16, bias, tiles) for bias in (None, torch.bfloat16) for tiles in TILES}
    assert len(Compiled.made) == 2 * len(TILES)


class Told(FewSparse):
    """Notes for which dtypes it is made ready."""

    told: list[Dtypes]

    def complete(self, prepared: object, dtypes: Dtypes) -> None:
        self.told.append(dtypes)


def test_a_linear_is_made_ready_for_what_its_model_computes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Told, "told", [], raising=False)
    times = {"few_sparse": 0.2, "stock": 0.6}
    with fake_gpu(monkeypatch, tmp_path, lambda name, tokens: times.get(name, 2.0), Told):
        assert all(kind.name != Told.name for kind in WAYS)
        route = choose(SPEC, CUDA, BOTH, SERVER).backend
        assert isinstance(route, Routed)
        route.complete([torch.zeros(0)] * 5, Dtypes(torch.float16, torch.float32))
        assert Told.told == [Dtypes(torch.float16, torch.float32)]
    seen: list[Dtypes] = []

    def ready(choice: object, weight: object, settings: object, dtypes: Dtypes) -> tuple[object, tuple[Tensor, ...]]:
        seen.append(dtypes)
        return choice, ()

    monkeypatch.setattr("slideconvert.kernels.linear.make_ready", ready)
    for bias, dtype in ((None, None), (None, torch.float16), (torch.bfloat16, None), (torch.float32, torch.bfloat16)):
        linear = SlideSparseLinear(SPEC, bias=bias is not None, dtype=bias or torch.float32)
        for name, tensor in SPEC.random(CPU).named().items():
            linear._set(name, tensor)
        linear.prepare("reference", dtype)
    assert seen == [
        Dtypes(torch.float32), Dtypes(torch.float16), Dtypes(torch.bfloat16, torch.bfloat16),
        Dtypes(torch.bfloat16, torch.float32),
    ]  # fmt: skip


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[int, int]]]:
    """A driver that notes by address what was filled in: value and count."""
    memory: dict[int, tuple[int, int]] = {}

    def allocate(nbytes: int) -> int:
        memory[256 * len(memory) + 256] = (0, nbytes // 4)
        return 256 * len(memory)

    monkeypatch.setattr(the_driver, "allocate", allocate)
    monkeypatch.setattr(the_driver, "fill", lambda address, value, count: memory.update({address: (value, count)}))
    monkeypatch.setattr(exchange, "most_exchanged", lambda blocks: 100)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("Some", (), {"multi_processor_count": 2})
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    yield memory


def test_a_stream_keeps_its_exchange_and_captured_ones_find_the_spare(
    driver: dict[int, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a spare, the memory is the graph's, no larger than the product needs, and not kept."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    found = Exchanges(CPU)
    first = found.of(1, 60)
    assert found.of(1, 100) is first and len(driver) == 2  # and a spare one
    capturing = True
    second = found.of(2, 60)
    assert (
        isinstance(second, Exchange) and second is not first and found.of(2, 60) is second and found.of(1, 60) is first
    )
    third = found.of(3, 60)
    assert isinstance(third, Tensor) and third.tolist() == [ABSENT] * 60 and found.of(3, 60) is not third
    assert address(third) == third.data_ptr() and len(driver) == 2
    capturing = False
    assert isinstance(found.of(3, 60), Exchange) and len(driver) == 4
    assert set(driver.values()) == {(ABSENT, 100)}


def test_without_memory_the_next_best_can_run(
    driver: dict[int, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(nbytes: int) -> int:
        raise the_driver.DriverError("the driver failed at allocating: out of memory (2)")

    monkeypatch.setattr(the_driver, "allocate", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="400 bytes for the product of few tokens"):
        Exchange(CPU, 100)
