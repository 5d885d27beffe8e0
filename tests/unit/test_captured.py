"""Work that a GPU repeats as a CUDA graph gives what it gives without one: training, with steps that are not finite and
batches of two sizes, and generated text. A GPU alone runs these; elsewhere calls run as they are."""

from __future__ import annotations

import gc
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from slideconvert.calibrate import generate as module
from slideconvert.calibrate.fixed_cache import fixed_cache
from slideconvert.calibrate.generate import generate
from slideconvert.core import captured
from slideconvert.core.captured import Captured
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.schemes import SCHEMES
from slideconvert.core.select import apply_mask
from slideconvert.prune import magnitude
from slideconvert.recover.options import Curve, Schedule, TrainingOptions
from slideconvert.recover.run import Run
from slideconvert.recover.trainable import Compressed, make_trainable, trained_of
from slideconvert.recover.training import train
from tests.helpers import pico
from tests.helpers.calibrated import write_model

GPU = pytest.mark.gpu
SEQUENCES, LENGTH, WIDTH = 34, 8, 64
FITTED, HELD = torch.arange(32), torch.arange(32, 34)
SCHEDULE = Schedule(epochs=5, rate=0.05, batch=6)
"""Batches of six and a last one of two, in parts of four or two sequences."""


class Net(nn.Module):
    """Two linears with a gate between them, pruned to 2:8 and trained towards the outputs of the dense ones."""

    def __init__(self, device: str) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(5)
        weights = [torch.randn(WIDTH, WIDTH, generator=drawn).div_(8).bfloat16() for _ in range(2)]
        self.first, self.second = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in weights)
        self.x = torch.randn(SEQUENCES, LENGTH, WIDTH, generator=drawn).to(device)
        self.y = self._with(*(weight.float().to(device) for weight in weights))
        pruned = [apply_mask(weight, magnitude(weight, BlockPattern(8))) for weight in weights]
        made = {
            name: SCHEMES["int8"].quantize(one).to(device)
            for name, one in zip(("first", "second"), pruned, strict=True)
        }
        self.linears = make_trainable(self, Compressed(made))

    def _with(self, first: Tensor, second: Tensor) -> Tensor:
        return nn.functional.silu(self.x @ first.T) @ second.T

    def read(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        numbers = numbers.to(self.x.device)
        return self.x[numbers], self.y[numbers]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.second(nn.functional.silu(self.first(x))) - y).square().mean()


def trained(net: Net, loss: Any = None, **words: Any) -> tuple[Curve, list[Tensor]]:
    options = TrainingOptions(micro=4, **words)
    curve = train(trained_of(net.linears), loss or net.loss, FITTED, HELD, SCHEDULE, options, net.read)
    return curve, [linear.latent.detach() for linear in net.linears.values()]  # type: ignore[union-attr]


@GPU
@pytest.mark.parametrize("broken", [False, True], ids=["finite", "one sequence has no finite loss"])
def test_training_as_a_graph_is_training(replays: list[int], monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """Sums in TF32 and in other orders, over 30 steps each of which moves a weight by at most 5 % of their size: 1e-3
    of that size is generous, and a step too many or too few is fifty times as much."""

    def net() -> Net:
        made = Net("cuda")
        if broken:
            made.y[3] = math.nan
        return made

    curve, weights = trained(net())
    assert len(replays) > 15, "five of six batches of an epoch are of six sequences; two run before the capture"
    monkeypatch.setattr(captured, "EAGER", 1 << 30)
    count = len(replays)
    expected, unrolled = trained(net())
    assert len(replays) == count and curve.best == expected.best > 0
    assert curve.skipped == expected.skipped == (SCHEDULE.epochs if broken else 0)
    assert curve.losses == pytest.approx(expected.losses, rel=1e-3)
    for made, wanted in zip(weights, unrolled, strict=True):
        assert float((made - wanted).abs().max()) < 1e-3 * float(wanted.square().mean().sqrt())


@GPU
def test_too_many_steps_in_a_row_end_training_there_too(replays: list[int]) -> None:
    net = Net("cuda")
    net.y[FITTED] = math.nan
    with pytest.raises(Exception, match=r"not finite in 8 steps in a row, 8 in all \(step 8 of 30\)"):
        trained(net)
    assert replays


@GPU
def test_a_capture_that_fails_leaves_training_as_it_is(
    replays: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net("cuda")

    def waits(x: Tensor, y: Tensor) -> Tensor:
        value = net.loss(x, y)
        return value if float(value.detach()) >= 0 else -value

    with caplog.at_level(logging.WARNING):
        curve, weights = trained(net, waits)
    assert not replays and [record for record in caplog.records if "without a CUDA graph" in record.message]
    monkeypatch.setattr(captured, "EAGER", 1 << 30)
    expected, unrolled = trained(Net("cuda"))
    assert curve == expected and all(map(torch.equal, weights, unrolled))


@GPU
def test_generated_text_is_the_same_with_a_graph(tmp_path: Path, replays: list[int]) -> None:
    """In float64, where no order of sums moves a token."""
    made = [generated(tmp_path, device, torch.float64) for device in ("cpu", "cuda")]
    assert torch.equal(*made) and len(replays) == 24 - 6 - 1 - captured.EAGER


@GPU
def test_text_is_generated_in_bfloat16_too(tmp_path: Path, replays: list[int]) -> None:
    assert generated(tmp_path, "cuda", torch.bfloat16).shape == (6, 24) and replays


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_cache_of_fixed_size_is_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """As a GPU uses it. In bfloat16 sums in other orders move some token, and all of its sequence that follow it."""
    expected = generated(tmp_path, "cpu", dtype)
    monkeypatch.setattr(module, "_cache", lambda model, _, tokens: (fixed_cache(model.config, tokens), True))
    made = generated(tmp_path, "cpu", dtype)
    assert torch.equal(made, expected) if dtype == torch.float64 else (made == expected).double().mean() > 0.5


def test_a_model_with_windows_has_no_cache_of_fixed_size() -> None:
    words = {"num_hidden_layers": 2, "sliding_window": 8}
    assert fixed_cache(Qwen2Config(**words, use_sliding_window=True, max_window_layers=1), 24) is None
    assert fixed_cache(Qwen2Config(**words), 24) is not None


def generated(folder: Path, device: str, dtype: torch.dtype) -> Tensor:
    """Six sequences of 24 tokens. dtype: in which the model runs."""
    tokens = torch.randint(0, pico.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(3))
    source, own = write_model(folder / f"{device}-{len(list(folder.iterdir()))}"), torch.float64
    model = AutoModelForCausalLM.from_pretrained(source, dtype=own if dtype == own else torch.float32)
    return generate(model.eval().to(device), tokens, 6, 0, torch.float32 if dtype == own else dtype)


def test_memory_of_a_step_is_free_as_soon_as_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python looks for cycles: the next layer is trained by then."""
    runs: list[weakref.ref[Run]] = []
    monkeypatch.setattr(Run, "_at_once", lambda run: not runs.append(weakref.ref(run)))
    gc.disable()
    try:
        trained(Net("cpu"))
        assert [run() for run in runs] == [None]
    finally:
        gc.enable()


def test_without_a_gpu_calls_run_as_they_are() -> None:
    met: list[Tensor] = []
    call = Captured(met.append, ())
    for _ in range(2 * captured.EAGER):
        call(torch.ones(2))
    assert len(met) == 2 * captured.EAGER
