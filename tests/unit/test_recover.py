"""Recovery: the linear that trains, the loop that trains it, and what both passes make of a model.

Losses that the curves tell are computed again from the stock transformers model with the weights that were stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.run import RunSettings, compressed_layers
from slideconvert.calibrate.store import LayerStore
from slideconvert.calibrate.tokens import calibration_tokens
from slideconvert.convert.pipeline import convert
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.quantize import QuantizedWeight, Weight
from slideconvert.core.schemes import SCHEMES, Scheme
from slideconvert.core.select import apply_mask
from slideconvert.plan.plan import Plan
from slideconvert.plan.presets import PRESETS
from slideconvert.prune import magnitude
from slideconvert.recover.block import recover_block
from slideconvert.recover.options import Curve, Schedule, TrainingOptions
from slideconvert.recover.trainable import Compressed, SurvivorLinear, make_trainable
from slideconvert.recover.training import shuffled, train
from tests.helpers import pico
from tests.helpers.batches import drawn_batches
from tests.helpers.calibrated import DEMO_TEXT, STAGES, numbers, plan_for, quality, write_model, write_text
from tests.helpers.matrices import UNGROUPED


def start(scheme: Scheme, rows: int = 24, columns: int = 40) -> Weight:
    """A pruned weight in a scheme."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    pruned = apply_mask(weight, magnitude(weight, BlockPattern(6)))
    return scheme.quantize(pruned) if scheme.quantized else pruned


def inputs(tokens: int = 50, columns: int = 40) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(2))


# ---- the linear that trains


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
def test_it_starts_at_what_is_served(scheme: Scheme, biased: bool) -> None:
    weight, bias = start(scheme), torch.linspace(-1, 1, 24) if biased else None
    linear = SurvivorLinear(weight, bias)
    assert torch.equal(linear(inputs()), nn.functional.linear(inputs(), numbers(weight), bias))
    assert_same_weight(linear.weight(), weight)


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
def test_wherever_it_goes_it_computes_with_what_would_be_stored(scheme: Scheme) -> None:
    """Exactly: what the rounding takes off is itself a float32 number, so adding it gives the rounded weight."""
    linear = SurvivorLinear(start(scheme), None)
    linear.latent.data += torch.randn(len(linear.latent), generator=torch.Generator().manual_seed(3)) * 0.05
    stored = linear.weight()
    assert torch.equal(linear(inputs()), nn.functional.linear(inputs(), numbers(stored)))
    assert not torch.equal(numbers(stored), numbers(start(scheme)))
    assert not numbers(stored)[numbers(start(scheme)) == 0].any()


def assert_same_weight(made: Weight, expected: Weight) -> None:
    if isinstance(made, QuantizedWeight) and isinstance(expected, QuantizedWeight):
        assert torch.equal(made.codes.view(torch.uint8), expected.codes.view(torch.uint8))
        assert torch.equal(made.scale, expected.scale) and made.scheme == expected.scheme
    else:
        assert isinstance(made, Tensor) and isinstance(expected, Tensor) and torch.equal(made, expected)


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
def test_gradients_pass_the_rounding_and_stop_at_the_mask(scheme: Scheme) -> None:
    """Straight through: dL/dlatent = (dL/dy)ᵀ x at the kept places. Sums of 50 terms in float32: 1e-5 is generous."""
    linear, x = SurvivorLinear(start(scheme), None), inputs()
    linear.latent.data += 0.01
    target = torch.randn(50, 24, generator=torch.Generator().manual_seed(4))
    (linear(x) - target).square().sum().backward()
    mask = (numbers(start(scheme)) != 0).numpy()
    wide = x.double().numpy()
    off = 2 * (wide @ numbers(linear.weight()).double().numpy().T - target.double().numpy())
    expected = (off.T @ wide)[mask]
    made = linear.latent.grad
    assert made is not None
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_linears_are_put_in_place_with_their_biases() -> None:
    parent = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(40, 24)}), "c": nn.Linear(40, 24, bias=False)})
    biases = {"a.b": parent.get_submodule("a.b").bias, "c": None}
    made = make_trainable(parent, Compressed({"a.b": start(SCHEMES["int8"]), "c": start(SCHEMES["bf16"])}))
    for path, bias in biases.items():
        assert parent.get_submodule(path) is made[path] and made[path].bias is bias


# ---- the loop


def test_the_rate_rises_to_its_height_and_falls_by_a_cosine() -> None:
    schedule = Schedule(epochs=1, rate=0.2, floor=0.1, warmup=0.1)
    rates = [schedule.rate_at(step, 40) for step in range(40)]
    assert rates[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])  # four steps of warm-up, then the height
    assert rates[22] == pytest.approx(0.2 * 0.55)  # half of the way down: the mean of 1 and the floor
    assert rates[39] == pytest.approx(0.2 * (0.1 + 0.9 * (1 - math.cos(math.pi / 36)) / 2))
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[39] > 0.02
    assert Schedule(epochs=1, rate=0.2, warmup=0).rate_at(0, 7) == 0.2


class Line:
    """Windows are points of a line fit: window n has the input n % 5 - 2 and its target; loss of a weight [2]."""

    def __init__(self, count: int = 12, scale: float = 1.0) -> None:
        self.x = torch.stack([torch.arange(count) % 5 - 2.0, torch.ones(count)], 1)
        self.y = (self.x @ torch.tensor([1.5, -0.5]) + 0.3 * torch.arange(count).sin()) * scale
        self.weight = nn.Parameter(torch.tensor([0.5, 0.5]) * scale)

    def loss(self, windows: Tensor) -> Tensor:
        return (self.x[windows] @ self.weight - self.y[windows]).square().mean()


def sized(parameter: nn.Parameter) -> list[tuple[nn.Parameter, float]]:
    """What trains, with its size: the root mean square."""
    return [(parameter, math.sqrt(parameter.detach().double().square().mean()))]


FITTED, HELD = torch.arange(10), torch.arange(10, 12)
SCHEDULE = Schedule(epochs=6, rate=0.1, batch=4)


def twin_train(
    line: Line,
    schedule: Schedule,
    broken: set[int] = frozenset(),  # type: ignore[assignment]
) -> tuple[NDArray[np.float64], list[float], int]:
    """Adam as its paper has it, float64: the best weight, the held-out losses, steps left out (those with `broken`)."""
    x, y, weight = line.x.double().numpy(), line.y.double().numpy(), line.weight.detach().double().numpy().copy()

    def held() -> float:
        return float(np.mean((x[10:] @ weight - y[10:]) ** 2))

    height = math.sqrt(np.mean(weight**2))
    shuffler = torch.Generator().manual_seed(0)
    first, second, taken, done, skipped = np.zeros(2), np.zeros(2), 0, 0, 0
    losses, states = [held()], [weight.copy()]
    steps = schedule.epochs * math.ceil(10 / schedule.batch)
    for _ in range(schedule.epochs):
        for windows in drawn_batches(10, schedule.batch, shuffler):
            rate = height * schedule.rate_at(done, steps)
            done += 1
            if broken & set(windows):
                skipped += 1
                continue
            gradient = 2 * (x[windows] @ weight - y[windows]) @ x[windows] / len(windows)
            taken += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
            step = first / (1 - 0.9**taken) / (np.sqrt(second / (1 - 0.95**taken)) + 1e-8)
            weight -= rate * step
        losses.append(held())
        states.append(weight.copy())
    return states[int(np.argmin(losses))], losses, skipped


@pytest.mark.parametrize("words", [{}, {"offload": True}, {"micro": 1}, {"micro": 3}], ids=str)
def test_training_is_adam_over_shuffled_batches(words: dict[str, Any]) -> None:
    """Ragged batches of ten windows, at once, in parts, or with Adam's state elsewhere. 1e-5: 18 steps in float32."""
    line = Line()
    expected, losses, _ = twin_train(line, SCHEDULE)
    told: list[tuple[int, int]] = []
    curve = train(
        sized(line.weight),
        line.loss,
        FITTED,
        HELD,
        SCHEDULE,
        TrainingOptions(progress=lambda *step: told.append(step), **words),
    )
    np.testing.assert_allclose(line.weight.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-5)
    assert curve.best == int(np.argmin(losses)) > 0 and curve.skipped == 0
    assert told == [(step, 18) for step in range(1, 19)]


@given(count=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_ranks_have_as_many_of_each_batch(count: int, batch: int, seed: int) -> None:
    """Each number once; where the number of ranks divides the batch, no rank has more of a whole batch than another."""
    order = shuffled(count, batch, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(count))
    for ranks in (ranks for ranks in range(1, batch + 1) if batch % ranks == 0):
        for part in order.split(batch):
            owned = (part % ranks).bincount(minlength=ranks)
            assert owned.max() <= batch // ranks and (len(part) < batch or owned.min() == batch // ranks)


def test_the_rate_is_a_share_of_the_weights_own_size() -> None:
    small, large = Line(), Line(scale=1024.0)
    for line in (small, large):
        train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE)
    torch.testing.assert_close(large.weight / 1024, small.weight, rtol=1e-5, atol=0)


def test_zeros_do_not_count_in_the_size_of_a_weight() -> None:
    """A layer of one row of which two weights survive trains as the two alone would."""
    line = Line()
    wide = SurvivorLinear(torch.cat([line.weight.detach(), torch.zeros(6)])[None], None)
    padded = torch.cat([line.x, torch.ones(12, 6)], 1)
    train(
        wide.trained,
        lambda windows: (wide(padded[windows])[:, 0] - line.y[windows]).square().mean(),
        FITTED,
        HELD,
        SCHEDULE,
    )
    train(sized(line.weight), line.loss, FITTED, HELD, SCHEDULE)
    torch.testing.assert_close(wide.latent, line.weight, rtol=1e-6, atol=0)


def test_an_absolute_rate_is_used_unchanged() -> None:
    """The size plays no part, and without it twice the rate takes twice the steps."""
    lines = Line(), Line(), Line()
    for line, size, rate in zip(lines, (1.0, 9.0, 1.0), (0.1, 0.1, 0.2), strict=True):
        train([(line.weight, size)], line.loss, FITTED, HELD, replace(SCHEDULE, rate=rate, relative=False, epochs=1))
    assert torch.equal(lines[0].weight, lines[1].weight) and not torch.equal(lines[0].weight, lines[2].weight)


def away(goal: float, held_goal: float) -> tuple[nn.Parameter, Callable[[Tensor], Tensor]]:
    """A number that fitted windows pull towards `goal` and held-out ones want to be `held_goal`; it starts at 1."""
    number = nn.Parameter(torch.ones(1))

    def loss(windows: Tensor) -> Tensor:
        wanted = torch.where(windows < 10, goal, held_goal)
        return (number - wanted).square().mean()

    return number, loss


def test_training_that_hurts_is_undone() -> None:
    number, loss = away(2.0, 1.0)
    curve = train(sized(number), loss, FITTED, HELD, SCHEDULE)
    assert number.detach().item() == 1 and curve.best == 0 and curve.losses[0] == 0 and min(curve.losses[1:]) > 0


def test_the_best_epoch_is_kept_and_not_the_last() -> None:
    number, loss = away(9.0, 1.5)
    curve = train(sized(number), loss, FITTED, HELD, replace(SCHEDULE, rate=0.15, floor=1.0))
    assert 0 < curve.best < SCHEDULE.epochs and curve.losses[curve.best] == min(curve.losses)
    assert (
        float(loss(HELD).detach()) == pytest.approx(curve.losses[curve.best])
        and abs(number.detach().item() - 1.5) < 0.3
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_whose_loss_is_not_finite_are_left_out_and_counted(value: float) -> None:
    line = Line()
    expected, losses, skipped = twin_train(line, SCHEDULE, broken={3})
    assert skipped == SCHEDULE.epochs

    def loss(windows: Tensor) -> Tensor:
        return line.loss(windows) * (value if 3 in windows else 1.0)

    curve = train(sized(line.weight), loss, FITTED, HELD, SCHEDULE, TrainingOptions(micro=2))
    assert curve.skipped == skipped
    np.testing.assert_allclose(line.weight.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-5)


def test_a_gradient_that_is_not_finite_is_as_bad_as_a_loss() -> None:
    """The square root of zero has a value and no slope."""
    line = Line()
    expected, _, skipped = twin_train(line, SCHEDULE, broken={3})

    def loss(windows: Tensor) -> Tensor:
        return line.loss(windows) + ((line.weight * 0).sum().sqrt() if 3 in windows else 0)

    curve = train(sized(line.weight), loss, FITTED, HELD, SCHEDULE)
    assert curve.skipped == skipped
    np.testing.assert_allclose(line.weight.detach().numpy(), expected, rtol=1e-5)


def test_a_state_whose_held_out_loss_is_not_a_number_is_never_the_best() -> None:
    number, loss = away(2.0, 2.0)
    finite = lambda windows: loss(windows) * (math.nan if number.item() > 1.4 and windows[0] >= 10 else 1)  # noqa: E731
    curve = train(sized(number), finite, FITTED, HELD, SCHEDULE)
    assert math.inf in curve.losses and number.item() <= 1.4 and math.isfinite(curve.losses[curve.best])


# ---- models


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preset quality with few epochs, the channels in the order of the source."""
    monkeypatch.setitem(PRESETS, "quality", quality(3, 2, permute=False))


def stock(source: Path, results: list[dict[str, Weight]]) -> Any:
    """The stock model with these weights by layer and place."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for layer, result in enumerate(results):
        for place, weight in result.items():
            model.get_submodule(f"model.layers.{layer}.{place}").weight.data = numbers(weight)
    return model


def outputs(model: Any, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """What stands before each layer and after the last one, [windows, length, hidden]; log probabilities."""
    kept: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model.model.norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
    return kept, logits.double().log_softmax(-1)


def of_tokens(states: Tensor, wanted: Tensor) -> float:
    """The squared error of each token relative to what is wanted of it, the mean over [windows, length, hidden]."""
    off, size = (part.double().norm(dim=-1) for part in (states - wanted, wanted))
    return float((off / size).square().mean())


def test_tokens_count_alike_however_large_their_states_are() -> None:
    """The first token of each sequence has states of a hundred times the size, and other inputs than the rest. Trained
    for absolute errors, of which it has 99.7 %, the rest would lose by training."""
    drawn, dense = torch.Generator().manual_seed(5), nn.Linear(40, 40, bias=False)
    dense.weight.data = torch.randn(40, 40, generator=drawn)
    x = torch.randn(32, 8, 12, generator=drawn) @ torch.randn(12, 40, generator=drawn)
    x[:, 0] = 100 * torch.randn(32, 40, generator=drawn).abs() * torch.linspace(0, 2, 40)
    y = dense(x).detach()
    pruned = apply_mask(dense.weight.data, magnitude(dense.weight.data, BlockPattern(4)))
    module = nn.ModuleDict({"one": dense})
    layer = SimpleNamespace(module=module, dtype=torch.float32, run=lambda given: module["one"](given))

    @torch.no_grad()
    def rest() -> float:
        return of_tokens(layer.run(x)[:, 1:], y[:, 1:])

    schedule, numbers_of = Schedule(epochs=10, rate=0.05, batch=4), (torch.arange(28), torch.arange(28, 32))
    make_trainable(module, Compressed({"one": pruned}))
    before = rest()
    at = (lambda numbers: x[numbers], lambda numbers: y[numbers])
    recover_block(layer, Compressed({"one": pruned}), *at, *numbers_of, schedule, 4)  # type: ignore[arg-type]
    assert rest() < 0.3 * before, (rest(), before)


MODELS = {
    "llama int8": ("llama", {"pattern": "2:4"}),
    "llama bf16": ("llama", {"pattern": "2:4", "scheme": "bf16"}),
    "qwen2 fp8": ("qwen2, two layers sliding", {"pattern": "2:4", "scheme": "fp8"}),
}


def both_passes(plan: Plan, folder: Path, batch_tokens: int | None = None) -> list[LayerResult]:
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    settings = RunSettings(batch_tokens=batch_tokens, precision="float32")
    return list(compressed_layers(plan, tokens, settings, folder, lambda *_: None))


@pytest.mark.parametrize("name", MODELS)
def test_curves_tell_the_losses_of_what_is_stored(tmp_path: Path, brief: None, name: str) -> None:
    """By block: of the weights after block recovery, against the stock dense model. End to end: of those stored.

    Held-out losses are means over windows in float32; 1e-4 of them is a hundred times what was found.
    """
    kind, words = MODELS[name]
    source, text = write_model(tmp_path / "source", kind), write_text(tmp_path / "text.jsonl", documents=30)
    plan = plan_for(source, text, samples=24, preset="quality", **words)
    final = both_passes(plan, tmp_path / "work", batch_tokens=96)
    store = LayerStore(tmp_path / "work", "layer")
    by_block = [result for result in map(store.load, range(pico.LAYERS)) if result]
    tokens = calibration_tokens(plan.recipe.calibration, plan.source)
    held = tokens[-3:]
    dense, wanted = outputs(stock(source, []), held)
    blocked, _ = outputs(stock(source, [result.weights for result in by_block]), held)
    _, given = outputs(stock(source, [result.weights for result in final]), held)
    for layer, result in enumerate(by_block):
        assert result.curve and result.end is None and len(result.curve.losses) == 4
        off, change = (of_tokens(states, dense[layer + 1]) for states in (blocked[layer + 1], blocked[layer]))
        assert result.curve.losses[result.curve.best] == pytest.approx(off / change, rel=1e-4)
    curves = [result.end for result in final]
    assert isinstance(curves[0], Curve) and curves == [curves[0]] * pico.LAYERS
    divergence = float((wanted.exp() * (wanted - given)).sum(-1).mean())
    assert curves[0].losses[curves[0].best] == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_published_model_has_the_reported_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Everything that quality does, permuted channels and biases included, read back by stock transformers."""
    monkeypatch.setitem(PRESETS, "quality", quality(2, 2))
    source, text = write_model(tmp_path / "source", kind), write_text(tmp_path / "text.jsonl", documents=30)
    plan = plan_for(source, text, samples=24, preset="quality", scheme="bf16", pattern="2:4")
    report = convert(plan, tmp_path / "out", settings=RunSettings(precision="float32"))
    held = calibration_tokens(plan.recipe.calibration, plan.source)[-3:]
    _, wanted = outputs(stock(source, []), held)
    _, given = outputs(stock(tmp_path / "out", []), held)
    told = next(part for part in report.training if part.part == "end to end")
    divergence = float((wanted.exp() * (wanted - given)).sum(-1).mean())
    assert told.losses[told.best] == pytest.approx(divergence, rel=1e-4)
    before, after = pico.read(source), pico.read(tmp_path / "out")
    moved = {name.partition("layers.0.")[2] for name in before if not torch.equal(before[name], after[name])}
    biases = {"self_attn.v_proj.bias"} if kind == "qwen2" else set()
    assert moved - {""} == {f"{place}.weight" for places in STAGES for place in places} | biases


def test_both_passes_train_survivors_only_and_change_nothing_else(
    tmp_path: Path, short_demo: Path, brief: None
) -> None:
    """On the demo model, where training helps in every part."""
    text = DEMO_TEXT / "calibration.jsonl"
    plain, trained = (
        both_passes(plan_for(short_demo, text, 32, 48, preset=preset, pattern="2:4", **words), tmp_path / preset)
        for preset, words in (("balanced", {"block_epochs": "0"}), ("quality", {}))
    )
    for place, weight in plain[0].weights.items():
        after = trained[0].weights[place]
        assert isinstance(weight, QuantizedWeight) and isinstance(after, QuantizedWeight)
        assert torch.equal(weight.scale, after.scale), "scales stay as they are"
        assert not torch.equal(weight.codes, after.codes)
        assert not after.codes[weight.codes == 0].any()
    for result in trained:
        for curve in (result.curve, result.end):
            assert curve and curve.best and curve.losses[curve.best] == min(curve.losses) < curve.losses[0]


def test_attention_dropout_of_a_model_plays_no_part(tmp_path: Path, brief: None) -> None:
    text, made = write_text(tmp_path / "text.jsonl"), []
    for share in (0.0, 0.5):
        source = write_model(tmp_path / f"{share}", attention_dropout=share)
        results = both_passes(plan_for(source, text, preset="quality", pattern="2:4"), tmp_path / f"work {share}")
        made.append([(result.curve, result.end) for result in results])
    assert made[0] == made[1]
