"""A GPU that is not there, on which our ways take injected times: what is chosen, without a device or a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slideconvert.kernels import autotune
from slideconvert.kernels.backends import base, choose, table
from slideconvert.kernels.backends.base import Backend, Prepared
from slideconvert.kernels.backends.choose import Host
from slideconvert.kernels.backends.cuda import CudaBackend
from slideconvert.kernels.backends.cusparselt import Cusparselt
from slideconvert.kernels.backends.dense import Dense, DenseCodes
from slideconvert.kernels.backends.int_mm import IntMm
from slideconvert.kernels.backends.reference import GroupReference, SlideReference
from slideconvert.kernels.slide_spec import SlideSpec, SlideWeight

CUDA = torch.device("cuda", 0)
GPU = "Some GPU"
WAYS: tuple[type[Backend], ...] = (Cusparselt, Dense, IntMm)
"""The real ways that take part; others do only where a test names them."""
Times = Callable[[str, int], float | None]
"""Microseconds by the name of a way and tokens."""


class FewDense(DenseCodes):
    """As a kernel for few tokens that reads dense codes in rows is added: all of its file but the kernel."""

    name = "few_dense"
    most_tokens = 64

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        return ""

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return x.new_full((*x.shape[:-1], self.spec.rows), 1.0)


class FewSparse(CudaBackend):
    """One that reads sparse weights in an order of its own, three tensors."""

    name, runs, form, tensors, most_tokens = "few_sparse", SlideSpec, "few_sparse", 3, 64

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        return ""

    @property
    def nbytes(self) -> int:
        return int(self.spec.rows * self.spec.slid * 5 // 8)

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, ...]:
        values = weight.slid.view(torch.int8)
        return values, values[:, :0], weight.scale.view(-1)

    def weight(self, prepared: Prepared) -> SlideWeight:
        return SlideWeight(self.spec, prepared[2].view(-1, 1), slid=prepared[0].view(self.spec.dtype))

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return x.new_full((*x.shape[:-1], self.spec.rows), 2.0)


class FakeStock(DenseCodes):
    """The dense kernel of a program of its own."""

    name = "stock"

    @classmethod
    def refusal(cls, spec: SlideSpec, device: torch.device) -> str:
        return ""

    def launch(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        return x.new_full((*x.shape[:-1], self.spec.rows), 3.0)


SERVER = Host("server", ("stock",), (FakeStock,), "1.0")


class FakeClock:
    """Notes what was asked for. Each measurement takes a second of `elapsed`."""

    def __init__(self, times: Times) -> None:
        self.times, self.asked, self.elapsed = times, [], 0.0
        self.asked: list[tuple[str, int]]

    def __call__(self, way: Backend, tokens: int) -> float | None:
        self.asked.append((way.name, tokens))
        self.elapsed += 1
        return self.times(way.name, tokens)

    def close(self) -> None:
        """There is nothing to give back."""

    def now(self) -> float:
        return self.elapsed


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, folder: Path, times: Times, *more: type[Backend]) -> Iterator[FakeClock]:
    """One GPU with an empty cache in `folder`, where WAYS and `more` run in these times; nothing is remembered."""
    clock = FakeClock(times)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for kind in WAYS:
        monkeypatch.setattr(kind, "refusal", classmethod(lambda cls, spec, device: ""))
        monkeypatch.setattr(kind, "complete", lambda self, prepared, dtypes: None)
    monkeypatch.setattr(choose, "BACKENDS", (*more, *WAYS, SlideReference, GroupReference))
    monkeypatch.setattr(choose, "CLOCK", lambda spec, device: clock)
    monkeypatch.setattr(choose, "STOPWATCH", choose.Stopwatch(clock.now))
    forget(monkeypatch)
    yield clock
    choose.choose.cache_clear()
    choose.backends_for.cache_clear()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing is known but what is on disk."""
    state: dict[Any, Any] = {choose: ("_HOSTS",), base: ("_SHARED", "NAMED"), table: ("_TABLES",)}
    state[autotune] = ("_CHOSEN",)
    for module, names in state.items():
        for name in names:
            monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(choose.STOPWATCH, "spent", 0.0)
    choose.choose.cache_clear()
    choose.backends_for.cache_clear()
