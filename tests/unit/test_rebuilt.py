"""Linears that keep only kept weights, and the optimizer that applies each gradient at once: the steps of plain AdamW
on dense weights, in less memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slideconvert.core.quantize import Weight
from slideconvert.errors import InputError
from slideconvert.recover.adam import MOMENTS, Adam
from slideconvert.recover.options import Schedule, TrainingOptions
from slideconvert.recover.rebuilt import Places
from slideconvert.recover.trainable import SurvivorLinear, trained_of
from slideconvert.recover.training import train
from tests.helpers import pico
from tests.helpers.batches import drawn_batches
from tests.unit.test_head import TOKENS, layered
from tests.unit.test_recover import FITTED, HELD, SCHEDULE, Line, sized


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- places


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (7, 129)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_are_those_of_the_mask(shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    places = Places(mask)
    assert places.count == int(mask.sum())
    assert places.indices().tolist() == mask.flatten().nonzero()[:, 0].tolist()


def test_a_place_takes_a_bit_and_a_kept_weight_a_float() -> None:
    """All tensors that a linear of 64 x 128 weights holds, half of them pruned."""
    weight = drawn(64, 128, seed=1) * (torch.arange(128) % 4 < 2)
    linear = SurvivorLinear(weight.bfloat16(), None)
    held = [value for value in [*vars(linear).values(), *vars(linear.places).values()] if isinstance(value, Tensor)]
    assert sum(tensor.nbytes for tensor in [*held, *linear.parameters()]) == 64 * 128 // 8 + 4 * 64 * 128 // 2


# ---- the plain way


class Net:
    """Two linears with a rectifier between, which fit random targets; inputs [12, 10], targets [12, 6]."""

    def __init__(self) -> None:
        self.x, self.y = drawn(12, 10, seed=2), drawn(12, 6, seed=3)
        weights: list[Weight] = [
            drawn(rows, columns, seed=rows) * (drawn(rows, columns, seed=rows + 50) > 0)
            for rows, columns in ((8, 10), (6, 8))
        ]
        self.linears = {str(number): SurvivorLinear(weight, None) for number, weight in enumerate(weights)}

    def loss(self, numbers: Tensor) -> Tensor:
        first, second = self.linears.values()
        return nn.functional.mse_loss(second(first(self.x[numbers]).relu()), self.y[numbers])


def plain(net: Net, schedule: Schedule) -> tuple[list[np.ndarray[Any, Any]], list[float]]:
    """AdamW on dense masked weights in float64, all gradients before all steps: the best weights, held-out losses."""
    x, y = net.x.double().numpy(), net.y.double().numpy()
    weights = [linear.dense(torch.float32).double().numpy() for linear in net.linears.values()]
    masks = [weight != 0 for weight in weights]
    sizes = [math.sqrt(np.square(weight).sum() / mask.sum()) for weight, mask in zip(weights, masks, strict=True)]
    moments = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in weights]

    def held() -> float:
        return float(np.mean(np.square(np.maximum(x[10:] @ weights[0].T, 0) @ weights[1].T - y[10:])))

    shuffler, done = torch.Generator().manual_seed(0), 0
    states, losses = [[weight.copy() for weight in weights]], [held()]
    steps = schedule.epochs * math.ceil(10 / schedule.batch)
    for _ in range(schedule.epochs):
        for numbers in drawn_batches(10, schedule.batch, shuffler):
            inner = np.maximum(x[numbers] @ weights[0].T, 0)
            off = 2 * (inner @ weights[1].T - y[numbers]) / y[numbers].size
            slopes = [((off @ weights[1]) * (inner > 0)).T @ x[numbers], off.T @ inner]
            rate, done = schedule.rate_at(done, steps), done + 1
            for number, slope in enumerate(slopes):
                first, second = moments[number]
                slope = slope * masks[number]
                first += 0.1 * (slope - first)
                second += 0.05 * (np.square(slope) - second)
                size = np.sqrt(second / (1 - 0.95**done)) + 1e-8
                weights[number] = weights[number] - rate * sizes[number] * first / (1 - 0.9**done) / size
        states.append([weight.copy() for weight in weights])
        losses.append(held())
    return states[int(np.argmin(losses))], losses


@pytest.mark.parametrize("words", [{}, {"micro": 1}, {"micro": 3}, {"offload": True}], ids=str)
def test_training_is_the_plain_way(words: dict[str, Any]) -> None:
    """Each of 18 steps moves a weight by at most 0.1 of their size. A slope is a sum of at most 4 x 10 products, off by
    40 x 2^-24 of its largest term; where terms cancel to a hundredth, a step is off by 40 x 100 x 2^-24 = 2.4e-4 of
    itself, and 18 of them by 4.3e-4 sizes."""
    net, twin = Net(), Net()
    expected, losses = plain(twin, SCHEDULE)
    sizes = [size for _, size in trained_of(net.linears)]
    curve = train(trained_of(net.linears), net.loss, FITTED, HELD, SCHEDULE, TrainingOptions(**words))
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-3)
    assert curve.best > 0
    for linear, weight, size in zip(net.linears.values(), expected, sizes, strict=True):
        made = linear.dense(torch.float32).double().numpy()
        assert np.abs(made - weight).max() < 4.3e-4 * size and not made[weight == 0].any()


@pytest.mark.parametrize("micro", [None, 2])
def test_one_gradient_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch, micro: int | None) -> None:
    """While a batch runs whole; in parts, the gradients of all parameters wait for the last one."""
    net, met = Net(), list[int]()
    step = Adam.step

    def counted(self: Adam, rate: Tensor, broken: Tensor) -> Tensor:
        met.append(sum(linear.latent.grad is not None for linear in net.linears.values()))
        return step(self, rate, broken)

    monkeypatch.setattr(Adam, "step", counted)
    train(trained_of(net.linears), net.loss, FITTED, HELD, Schedule(1, 0.01, batch=5), TrainingOptions(micro))
    assert met == [1, 1] * 2 if micro is None else met == [2, 1] * 2
    assert all(linear.latent.grad is None for linear in net.linears.values())


def test_offloaded_moments_take_the_same_steps() -> None:
    nets = Net(), Net()
    for net, offload in zip(nets, (False, True), strict=True):
        train(trained_of(net.linears), net.loss, FITTED, HELD, SCHEDULE, TrainingOptions(offload=offload))
    for plain_one, offloaded in zip(nets[0].linears.values(), nets[1].linears.values(), strict=True):
        assert torch.equal(plain_one.latent, offloaded.latent)


@pytest.mark.parametrize("offload", [False, True])
def test_between_steps_offloaded_moments_are_in_cpu_memory_alone(offload: bool) -> None:
    parameter = nn.Parameter(torch.ones(3))
    adam = Adam(parameter, offload=offload)
    for broken in (False, True, False):
        parameter.grad = torch.tensor([1.0, -2.0, 0.0])
        assert bool(adam.step(torch.tensor(0.1), torch.tensor(float(broken)))) == broken
        state = adam.state()
        assert [state[name] is adam._kept.get(name) for name in MOMENTS] == [offload] * 2
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.8, 1.2, 1.0]))


def test_a_gradient_that_is_not_finite_stops_its_own_parameter() -> None:
    """The others have moved by then. The step counts as skipped once."""
    line, alone, broken = Line(), Line(), nn.Parameter(torch.ones(2))
    schedule = Schedule(2, 0.1, batch=4)

    def loss(windows: Tensor) -> Tensor:
        return line.loss(windows) + (broken * 0).sum().sqrt()

    curve = train([*sized(line.weight), (broken, 1.0)], loss, FITTED, HELD, schedule)
    train(sized(alone.weight), alone.loss, FITTED, HELD, schedule)
    assert curve.skipped == 6 and torch.equal(broken, torch.ones(2))
    assert torch.equal(line.weight, alone.weight)


@pytest.mark.parametrize("resident", [False, True])
def test_the_dense_weight_serves_a_batch_and_goes_when_its_gradient_is_there(resident: bool) -> None:
    """Indices of the places stay where they may."""
    linear = SurvivorLinear(drawn(6, 8, seed=1).bfloat16(), None)
    linear.resident = resident
    linear.release_after_backward()
    x = drawn(3, 8, seed=2)
    first, second = linear(x), linear(x)
    made = linear.passed(torch.float32)
    (first + second).sum().backward()
    assert linear._dense is None and (linear._indices is not None) == resident
    again = linear.passed(torch.float32)
    assert again is not made and torch.equal(again, made) and linear.passed(torch.float32) is again
    with torch.no_grad():
        linear.latent.mul_(2)
    assert torch.equal(linear.passed(torch.float32), 2 * made), "of other latent weights, another one"
    assert linear.passed(torch.bfloat16).dtype == torch.bfloat16


# ---- the state


def test_a_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    keep = TrainingOptions(state=tmp_path / "keep.safetensors")
    line, net = Line(), Net()
    train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE, keep)
    with pytest.raises(
        InputError, match=r"keep-0\.safetensors: the state of a training of other parameters"
    ) as refused:
        train(trained_of(net.linears), net.loss, FITTED, HELD, SCHEDULE, keep)
    assert "delete this file" in refused.value.hint


# ---- the whole model


@pytest.mark.parametrize("at_once", [1, 3])
def test_only_states_between_layers_wait_for_the_backward_pass(tmp_path: Path, at_once: int) -> None:
    """5 sequences of 12 tokens in 3 layers, in pieces; the final norm's are the rest."""
    folder = pico.write(tmp_path / "source")
    student = layered(folder, TOKENS, at_once=at_once)
    for layer in student.layers:
        weight = layer.linear("mlp.down_proj").weight.detach().bfloat16()
        layer.module.set_submodule("mlp.down_proj", SurvivorLinear(weight, None))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = student.hidden(student.embed(TOKENS))
    state = 4 * 12 * pico.HIDDEN
    between = [tensor for tensor in kept if tensor.shape[1:] == (12, pico.HIDDEN) and len(tensor) <= at_once]
    assert sum(tensor.nbytes for tensor in between) == pico.LAYERS * len(TOKENS) * state
    assert sum(tensor.nbytes for tensor in kept) < (pico.LAYERS + 4) * len(TOKENS) * state
    hidden.sum().backward()
