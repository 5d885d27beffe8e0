"""One choice for all tensor-parallel ranks, and what vLLM's own kernels run; with a group of threads, without vLLM."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert.errors import InputError
from slideconvert.kernels.backends.choose import Settings
from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.slide_spec import SlideSpec
from slideconvert.runtime.vllm_choice import choose_alike, obstacle
from tests.helpers.fake_gpu import CUDA, SERVER, FewDense, fake_gpu

SPEC = SlideSpec(64, 96, 8, torch.int8)


class Ranks:
    """As vLLM's group: rank 0 puts, the others get."""

    def __init__(self, world_size: int, rank_in_group: int, channel: queue.Queue[Any]) -> None:
        self.world_size, self.rank_in_group, self._channel = world_size, rank_in_group, channel

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        assert src == 0
        if self.rank_in_group == 0:
            for _ in range(self.world_size - 1):
                self._channel.put(obj)
            return obj
        return self._channel.get(timeout=10)


def at_every_rank(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` gives at each rank, or the error that it raises."""
    channel: queue.Queue[Any] = queue.Queue()
    found: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            found[rank] = work(Ranks(count, rank, channel))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_all_ranks_take_the_choice_of_the_first_which_alone_measures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def times(name: str, tokens: int) -> float:
        return 0.3 if name == "few_dense" else 1.0

    with fake_gpu(monkeypatch, tmp_path, times, FewDense) as clock:
        found = at_every_rank(3, lambda group: choose_alike(SPEC, CUDA, Settings(), SERVER, group))
        assert [choice.backend.name for choice in found] == ["few_dense:64,stock"] * 3, found
        assert len(set(clock.asked)) == len(clock.asked)
        alone = choose_alike(SPEC, CUDA, Settings(), SERVER, Ranks(1, 0, queue.Queue()))
        assert alone.backend is found[0].backend and alone.why == found[2].why


def test_what_the_first_cannot_choose_no_rank_waits_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backend that is refused, and an error that nobody expected."""
    with fake_gpu(monkeypatch, tmp_path, lambda name, tokens: 1 / 0):
        found = at_every_rank(2, lambda group: choose_alike(SPEC, CUDA, Settings("few"), SERVER, group))
        assert all(isinstance(error, ValueError) and "unknown backend 'few'" in str(error) for error in found), found
        found = at_every_rank(2, lambda group: choose_alike(SPEC, CUDA, Settings(), SERVER, group))
        assert isinstance(found[0], ZeroDivisionError) and str(found[1]) == "rank 0 failed"


def test_a_rank_that_cannot_run_the_choice_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_gpu(monkeypatch, tmp_path, lambda name, tokens: 0.3 if name == "few_dense" else 1.0, FewDense):
        refusal = classmethod(
            lambda cls, spec, device: "no NVRTC" if threading.current_thread().name.endswith("rank1") else ""
        )
        monkeypatch.setattr(FewDense, "refusal", refusal)

        def work(group: Ranks) -> Any:
            threading.current_thread().name += f"rank{group.rank_in_group}"
            return choose_alike(SPEC, CUDA, Settings(), SERVER, group)

        found = at_every_rank(2, work)
        assert found[0].backend.name == "few_dense:64,stock"
        assert "rank 0 chose few_dense:64,stock, rank 1 cannot run it: no NVRTC" in str(found[1])


def test_what_one_rank_cannot_run_none_does() -> None:
    """Of K = 12 over three ranks, the last alone begins where a block does; ranks that disagree would wait for ever."""
    cuts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    spec = SlideSpec(8, 12, 8, torch.int8)
    assert spec.misfit(cuts[2]) is None
    reason = obstacle("layer", [spec], "", cuts)
    assert "over 3 ranks cuts its K = 12 columns into 4, no multiple of L = 8" in reason
    assert obstacle("layer", [spec], "", [slice(0, 12)]) == ""


def test_what_neither_can_run_is_refused() -> None:
    spec = GroupSpec(8, 96, 32, 4, 8, False)
    with pytest.raises(InputError, match="layer: tensor parallelism over 2 ranks cuts its K = 96 columns into 48"):
        obstacle("layer", [spec], "", [slice(0, 48), slice(48, 96)])


def test_other_schemes_and_mixed_patterns_are_left_to_vllm() -> None:
    pair: list[Any] = [SlideSpec(8, 24, length, torch.int8) for length in (8, None)]
    assert "patterns 2:8, 2:inf" in obstacle("layer", pair, "", [slice(0, 24)])
    assert "as MarlinScheme on this device" in obstacle("layer", pair[:1], "MarlinScheme", [slice(0, 24)])
