"""The solvers of calibrated pruning against their float64 twins, brute force, and the laws that they must keep.

Tolerances. Layers here have Gram matrices of condition below 1000 after damping. Factors and solutions in float32 are
then off by at most some 1e-7 · condition, far less as a rule: measured 5e-7 of a row's largest weight, allowed 1e-5.
A decision (which weight goes, which code is nearest) that float64 takes with a smaller margin than that may fall either
way in float32 and changes all later ones of its row, so rows with such a decision are left out where decisions are
compared; the tests say how many may be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.core import captured
from slideconvert.core.patterns import ALL, LENGTHS, BlockPattern, GroupPattern
from slideconvert.core.quantize import QuantizedWeight, Weight
from slideconvert.core.schemes import BF16, INT8, SCHEMES, Scheme
from slideconvert.core.select import apply_mask
from slideconvert.core.weights import floats
from slideconvert.errors import InputError
from slideconvert.prune import METHODS, Problem
from slideconvert.prune.alps import alps_mask
from slideconvert.prune.methods import Method
from slideconvert.prune.panel import Panel, prune_panel, repeated
from slideconvert.prune.refit import asymmetric_target, best_step_count, refit, refit_steps
from slideconvert.prune.solvers import on_mask
from slideconvert.prune.sweep import Grid, block_order, column_order, damp, sweep
from slideconvert.prune.wanda import wanda_mask
from tests.helpers.correlated import Layer, layer, statistics
from tests.helpers.matrices import UNGROUPED, raw
from tests.twins import prune, pruning

CLOSE = 1e-5
"""How far float32 may be from the twins, as a share of a row's largest weight."""
WITH_REFIT = ("obs", "alps", "gqsa")
SOLVERS = [method for method in METHODS.values() if method.calibrated and not method.whole_groups]


def grid_of(weight: Tensor, scheme: Scheme) -> Grid | None:
    return scheme.grid(weight) if scheme.quantized else None


def for_twin(grid: Grid | None) -> pruning.Grid | None:
    return (grid.scheme.name, grid.scale[:, 0].double().numpy()) if grid else None


def numbers(weight: Weight) -> NDArray[np.float64]:
    return (weight.dequantize() if isinstance(weight, QuantizedWeight) else weight).double().numpy()


def assert_near(made: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Row by row within CLOSE of the row's largest number."""
    off = np.abs(made - expected).max(1) / np.abs(expected).max(1)
    assert off.max() < CLOSE


def groups_shuffled(columns: int, length: int, seed: int = 0) -> Tensor:
    """An order of columns: groups in random order, a ragged one last."""
    whole = np.random.default_rng(seed).permutation(columns // length)
    order = [group * length + lane for group in whole for lane in range(length)]
    return torch.tensor(order + list(range(columns // length * length, columns)))


def assert_law(keep: Tensor, pattern: BlockPattern) -> None:
    """Two of every full group go; of a ragged last one as many as its missing columns leave to go."""
    gone = (~keep).int()
    whole = keep.shape[1] // pattern.block * pattern.block
    missing = pattern.block - keep.shape[1] + whole
    assert gone[:, :whole].view(len(keep), -1, pattern.block).sum(2).unique().tolist() == [2]
    assert gone[:, whole:].sum(1).unique().tolist() == [max(0, 2 - missing) if missing < pattern.block else 0]


def all_zeros_plain(weight: Weight) -> bool:
    """No -0 among the stored numbers."""
    stored = weight.codes if isinstance(weight, QuantizedWeight) else weight
    return not ((numbers(weight) == 0) & (raw(stored) != 0)).any()


# ---- the sweep


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
@pytest.mark.parametrize("length", [4, 6, 8, 10, 12])
def test_sweep_equals_brute_force(length: int, scheme: Scheme) -> None:
    """K = 12: the inverse of what is still free, taken anew for every column, gives the same weights and mask."""
    compared = 0
    for seed in range(4):
        one = layer(6, 12, seed)
        order, grid = groups_shuffled(12, length, seed), grid_of(one.weight, scheme)
        expected, mask = pruning.brute_force(one.wide, one.gram, order.tolist(), length, None, for_twin(grid))
        twin, twin_mask, margins = pruning.sweep(one.wide, one.gram, order.tolist(), length, None, for_twin(grid))
        np.testing.assert_allclose(twin, expected, atol=1e-12)
        np.testing.assert_array_equal(twin_mask, mask)
        made, keep = sweep(one.weight, one.damped.gram, order, choose=BlockPattern(length), grid=grid)
        sure = margins > CLOSE
        np.testing.assert_array_equal(keep.numpy()[sure], mask[sure])
        assert_near(numbers(made)[sure], expected[sure])
        compared += int(sure.sum())
    assert compared >= 20, "of 24 rows"


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
@pytest.mark.parametrize("columns", [64, 77])
@pytest.mark.parametrize("length", LENGTHS)
def test_sweep_over_blocks_and_tails_equals_the_twin(length: int, columns: int, scheme: Scheme) -> None:
    one = layer(8, columns, length)
    order, grid = groups_shuffled(columns, length), grid_of(one.weight, scheme)
    expected, mask, margins = pruning.sweep(one.wide, one.gram, order.tolist(), length, None, for_twin(grid))
    made, keep = sweep(one.weight, one.damped.gram, order, choose=BlockPattern(length), grid=grid)
    sure = margins > CLOSE
    assert sure.sum() >= 5
    np.testing.assert_array_equal(keep.numpy()[sure], mask[sure])
    assert_near(numbers(made)[sure], expected[sure])


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
def test_sweep_on_a_mask_equals_the_twin(scheme: Scheme) -> None:
    """GPTQ with zeros forced: what cannot be kept off the mask is paid back, in any order of columns."""
    one = layer(8, 70, 3)
    keep = torch.rand(8, 70, generator=torch.Generator().manual_seed(0)) < 0.7
    grid, order = grid_of(one.weight, scheme), column_order(one.damped)
    assert order.tolist() == sorted(range(70), key=lambda column: (-one.gram[column, column], column))
    expected, _, margins = pruning.sweep(one.wide, one.gram, order.tolist(), None, keep.numpy(), for_twin(grid))
    made, kept = sweep(one.weight, one.damped.gram, order, keep=keep, grid=grid)
    assert torch.equal(kept, keep)
    sure = margins > CLOSE
    assert sure.sum() >= 5
    assert_near(numbers(made)[sure], expected[sure])
    assert not numbers(made)[~keep.numpy()].any()


def test_sweep_without_anything_to_do_changes_nothing() -> None:
    one = layer(3, 20)
    made, keep = sweep(one.weight, one.damped.gram, torch.arange(20))
    assert keep.all()
    assert torch.equal(made, one.weight)


@pytest.mark.parametrize("length", LENGTHS)
def test_natural_zeros_go_first(length: int) -> None:
    """In the first group visited, before anything has moved them."""
    one = layer(6, 3 * length)
    weight = one.weight.clone()
    weight[:, [length + 1, 2 * length - 1]] = 0
    order = torch.arange(3 * length).roll(-length)
    keep = sweep(weight, one.damped.gram, order, choose=BlockPattern(length))[1]
    assert (~keep[:, length : 2 * length]).nonzero()[:, 1].tolist() == [1, length - 1] * 6


@pytest.mark.parametrize("length", LENGTHS)
def test_dead_inputs_go_first(length: int) -> None:
    """They correlate with nothing, so their zeros stay zeros wherever their group comes."""
    one = layer(6, 3 * length)
    inputs, weight, dead = one.inputs.clone(), one.weight.clone(), [length + 1, length + 3]
    inputs[:, dead] = weight[:, dead] = 0
    damped = damp(inputs.T @ inputs)
    assert damped.dead.nonzero()[:, 0].tolist() == dead
    for keep in (
        sweep(weight, damped.gram, torch.arange(3 * length), choose=BlockPattern(length))[1],
        alps_mask(weight, damped.gram, BlockPattern(length)),
    ):
        assert (~keep[:, length : 2 * length]).nonzero()[:, 1].tolist() == [1, 3] * 6


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
def test_sweep_leaves_plain_zeros(scheme: Scheme) -> None:
    """A pruned negative weight is +0, and so is a small negative one that rounds to zero."""
    one = layer(20, 40)
    weight = one.weight.clone()
    weight[:, 0] = 1e4  # so large a scale that most codes are zero
    made, keep = sweep(weight, one.damped.gram, torch.arange(40), choose=BlockPattern(8), grid=grid_of(weight, scheme))
    rounded = on_mask(weight, keep, one.damped, scheme)
    for result in (made, rounded):
        assert not numbers(result)[~keep.numpy()].any()
        assert all_zeros_plain(result)


def test_groups_of_largest_loss_come_first_and_whole() -> None:
    """What a group loses alone: its two lowest w² / [H⁻¹]_cc, summed over rows. A ragged last group stays last."""
    one = layer(3, 123, 1)
    order = block_order(one.weight, one.damped, BlockPattern(6))
    assert sorted(order.tolist()) == list(range(123))
    assert order[120:].tolist() == [120, 121, 122]
    assert torch.equal(order[:120].view(20, 6), order[:120:6, None] + torch.arange(6))
    scores = (one.wide**2 / np.diag(np.linalg.inv(one.gram)))[:, :120].reshape(3, 20, 6)
    losses = np.sort(scores, axis=2)[:, :, :2].sum((0, 2))
    assert (order[:120:6] // 6).tolist() == sorted(range(20), key=lambda group: -losses[group])


# ---- patterns of real widths


@pytest.mark.parametrize("length", [4, 6, 8, 10])
@pytest.mark.parametrize("columns", [896, 1280, 1536, 2048, 3072, 4864, 11008])
def test_sweep_keeps_the_pattern_at_the_widths_of_real_models(
    columns: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute positions, in any order of groups. A factor of ones takes the place of the Cholesky factor, which costs
    minutes at these widths; every column then pays all it loses back to all others."""
    monkeypatch.setattr("slideconvert.prune.sweep.free_factor", lambda gram, order: gram)
    weight = torch.randn(2, columns, generator=torch.Generator().manual_seed(0))
    order, pattern = groups_shuffled(columns, length), BlockPattern(length)
    ones = torch.ones(()).expand(columns, columns)
    made, keep = sweep(weight, ones, order, choose=pattern, grid=INT8.grid(weight))
    assert_law(keep, pattern)
    assert isinstance(made, QuantizedWeight)
    pattern.check(made.codes, "w")
    assert not made.codes[~keep].any()


@pytest.mark.parametrize("length", [4, 6, 8, 10])
def test_both_masks_keep_the_pattern_at_a_real_width(length: int) -> None:
    """Nothing replaced: 896 columns are not divisible by 6 and 10."""
    one, pattern = layer(3, 896), BlockPattern(length)
    order = block_order(one.weight, one.damped, pattern)
    assert_law(sweep(one.weight, one.damped.gram, order, choose=pattern)[1], pattern)
    assert_law(alps_mask(one.weight, one.damped.gram, pattern), pattern)


# ---- every method, scheme and pattern


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
@pytest.mark.parametrize("pattern", ALL, ids=str)
@pytest.mark.parametrize("method", SOLVERS, ids=lambda method: method.name)
def test_every_method_gives_legal_weights(method: Method, pattern: BlockPattern, scheme: Scheme) -> None:
    one = layer(6, 44, 5)
    inputs = one.inputs.clone()
    inputs[:, 9] = 0
    dense = inputs + 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1)) * (inputs != 0)
    weight = one.weight.to(torch.bfloat16).float()
    if not method.prunes:
        weight = apply_mask(weight, pattern.select(weight.abs()))
    before = weight.clone()
    solve = method.solve
    assert solve is not None
    for known in (statistics(inputs), statistics(inputs, dense, held=40)):
        made = solve(Problem(weight, known, pattern, scheme)).weight
        assert torch.equal(weight, before), "the source is not the method's to change"
        stored = made.codes if isinstance(made, QuantizedWeight) else made
        assert stored.dtype == (getattr(torch, scheme.dtype) if scheme.quantized else torch.float32)
        pattern.check(stored, method.name)
        assert all_zeros_plain(made)
        assert method.name == "wanda" or not numbers(made)[:, 9].any()  # weights of dead inputs mean nothing
        lost = float(((numbers(made) - before.numpy()) ** 2).sum() / (before.numpy() ** 2).sum())
        assert lost < 1  # finite, and nothing like it without the weights
        if not method.prunes:
            assert not numbers(made)[before.numpy() == 0].any()


def test_wanda_weighs_by_the_size_of_inputs() -> None:
    one = layer(8, 45)
    known = statistics(one.inputs)
    norms = known.norms.numpy()
    np.testing.assert_allclose(norms, np.sqrt((one.inputs.double().numpy() ** 2).mean(0)), rtol=1e-6)
    expected = prune.magnitude(one.weight.numpy() * norms, 6)
    np.testing.assert_array_equal(wanda_mask(one.weight, known.norms, BlockPattern(6)).numpy(), expected)


@pytest.mark.parametrize("scheme", UNGROUPED.values(), ids=UNGROUPED)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_more_a_method_does_the_less_it_loses(length: int, scheme: Scheme) -> None:
    """On the tokens it was calibrated on, rounding included."""
    one, pattern = layer(24, 96, 2), BlockPattern(length)
    known = statistics(one.inputs)
    lost = {}
    for method in SOLVERS:
        if method.prunes and method.solve is not None:
            made = method.solve(Problem(one.weight, known, pattern, scheme)).weight
            lost[method.name] = pruning.loss(one.wide, numbers(made), known.gram.double().numpy()).sum()
    assert lost["alps"] < lost["obs"] < lost["hessian"] < lost["wanda"]


# ---- refit


def swept(one: Layer, pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    made, keep = sweep(one.weight, one.damped.gram, block_order(one.weight, one.damped, pattern), choose=pattern)
    assert isinstance(made, Tensor)
    return made, keep


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_refit_equals_textbook_conjugate_gradients(steps: int) -> None:
    one = layer(6, 40)
    start, keep = swept(one, BlockPattern(6))
    expected = pruning.conjugate_gradients(one.wide, start.double().numpy(), one.gram, keep.numpy(), steps)
    assert_near(refit(one.weight, start, keep, one.damped.gram, steps).double().numpy(), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_refit_goes_down_from_the_sweep_to_least_squares(length: int) -> None:
    """The loss of every row: never above that of the sweep, no step up, and in the end the least there is."""
    for seed, columns in enumerate((48, 61)):
        one = layer(8, columns, seed)
        start, keep = swept(one, BlockPattern(length))
        exact = pruning.least_squares(one.wide, one.gram, keep.numpy())
        least = pruning.loss(one.wide, exact, one.gram)
        steps = [made.double().numpy() for made in refit_steps(one.weight, start, keep, one.damped.gram, 60)]
        losses = np.array([pruning.loss(one.wide, made, one.gram) for made in steps])
        np.testing.assert_array_equal(steps[0], start.double().numpy())
        assert (losses[1:] <= losses[:-1] * (1 + 1e-5)).all()
        assert (losses[5] < losses[0]).all()
        np.testing.assert_allclose(losses[-1], least, rtol=1e-5)
        assert all(not made[~keep.numpy()].any() for made in steps)


def test_refit_of_what_is_exact_already_stops_at_once() -> None:
    one = layer(3, 16)
    steps = list(refit_steps(one.weight, one.weight, torch.ones(3, 16, dtype=torch.bool), one.damped.gram, 9))
    assert len(steps) == 1
    assert torch.equal(steps[0], one.weight)


def test_refit_of_a_row_of_zeros_beside_others() -> None:
    """A row that has arrived stands still: 0/0 does not spread."""
    one = layer(3, 16)
    weight = one.weight.clone()
    weight[1] = 0
    keep = BlockPattern(4).select(weight.abs())
    made = refit(weight, weight * keep, keep, one.damped.gram, 40)
    assert_near(made[::2].double().numpy(), pruning.least_squares(one.wide, one.gram, keep.numpy())[::2])
    assert not made[1].any()


def test_refit_stops_where_held_out_tokens_say() -> None:
    """Few tokens to learn from: the best step lies in between, and it is the best on tokens not learnt from."""
    one = layer(8, 48)
    few, held = one.inputs[:50], one.inputs[50:]
    damped = damp(few.T @ few / 50)
    start = apply_mask(one.weight, keep := BlockPattern(4).select(one.weight.abs()))
    steps = list(refit_steps(one.weight, start, keep, damped.gram, 30))
    errors = [float(((step - one.weight) @ held.T).double().square().sum()) for step in steps]
    best = best_step_count(one.weight, one.weight, start, keep, damped.gram, statistics(held), 30)
    assert 0 < best < len(steps) - 1
    assert errors[best] == pytest.approx(min(errors), rel=1e-5)


@pytest.mark.parametrize("scheme", [BF16, INT8], ids=["bf16", "int8"])
@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.calibrated], ids=lambda one: one.name
)
def test_held_out_tokens_choose_the_steps_of_the_refit_and_nothing_else(method: Method, scheme: Scheme) -> None:
    """Held-out inputs that are four times as large choose the same number: a factor of 16 rounds no loss otherwise. In
    a Gram matrix it would be a large change. Methods without a refit do the same without held-out tokens."""
    one = layer(8, 48)
    dense = one.inputs + 0.2 * torch.randn(one.inputs.shape, generator=torch.Generator().manual_seed(0))
    known = statistics(one.inputs, dense, held=60)
    assert known.held is not None and known.held.cross is not None
    larger = replace(known.held, gram=16 * known.held.gram, cross=16 * known.held.cross)
    others = [replace(known, held=larger)]
    if method.name not in WITH_REFIT:
        others.append(replace(known, held=None))
    pattern = GroupPattern(8, 0.5) if method.whole_groups else BlockPattern(4)
    solve = method.solve
    assert solve is not None
    made, *again = [solve(Problem(one.weight, some, pattern, scheme)) for some in (known, *others)]
    for other in again:
        assert np.array_equal(numbers(other.weight), numbers(made.weight)) and other.notes == made.notes


# ---- the asymmetric target


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_asymmetric_target_equals_least_squares(strength: float) -> None:
    one = layer(5, 24)
    dense = one.inputs + 0.2 * torch.randn(one.inputs.shape, generator=torch.Generator().manual_seed(0))
    known = statistics(one.inputs, dense)
    damped = damp(known.gram)
    assert known.cross is not None
    ridge = (damped.gram - known.gram).diagonal().double().numpy() * known.tokens
    wide = dense.double().numpy(), one.inputs.double().numpy()
    expected = pruning.asymmetric_target(one.wide, *wide, ridge, strength)
    made = asymmetric_target(one.weight, damped, known.cross, strength).double().numpy()
    assert np.abs(expected - one.wide).max() > 0.01  # there is something to aim at
    assert_near(made, expected)


# ---- damping


def test_insufficient_damping_is_raised_and_reported() -> None:
    one = layer(1, 20)
    gram = one.damped.gram
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -0.05 * gram.diagonal().mean()
    bent = (vectors * values) @ vectors.T
    damped = damp(bent)
    added = (damped.gram - bent).diagonal() / bent.diagonal().mean()
    torch.testing.assert_close(added, torch.full_like(added, 0.1), rtol=1e-3, atol=0)
    assert len(damped.notes) == 1
    assert "0.01 of the mean diagonal" in damped.notes[0]
    assert damp(gram).notes == ()


def test_large_inputs_that_the_mean_does_not_reach_are_damped_by_their_own_size() -> None:
    """Two of 400 inputs are large and more alike than can be; ten times the mean is too little for them."""
    gram = 1e-3 * torch.eye(400)
    gram[:2, :2] = torch.tensor([[1, 1.08], [1.08, 1]])
    damped = damp(gram)
    torch.testing.assert_close(damped.gram.diagonal(), gram.diagonal() * 1.1)
    assert len(damped.notes) == 1
    gram[0, 1] = gram[1, 0] = 1.2
    with pytest.raises(ArithmeticError, match="not positive definite even with 10 % of each diagonal entry"):
        damp(gram)


# ---- ALPS


def test_alps_equals_the_twin() -> None:
    """Hundreds of decisions depend on each other, so some may fall otherwise in float32: at most one weight in 100."""
    for seed, length in enumerate(LENGTHS):
        one = layer(16, 50 + seed, seed)
        expected = pruning.admm(one.wide, one.gram, length)
        mask = alps_mask(one.weight, one.damped.gram, BlockPattern(length)).numpy()
        assert (mask == expected).mean() > 0.99
        assert (expected != pruning.project(one.wide * np.sqrt(np.diag(one.gram)), length)).mean() > 0.02


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_alps_moves_the_mask_where_inputs_are_nearly_copies(noise: float) -> None:
    """With ρ = 0.1 from the start it would hardly leave the first guess there, and lose more than the sweep."""
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy((rng.normal(size=(400, 1)) + noise * rng.normal(size=(400, 64))).astype(np.float32))
    one = Layer(layer(24, 64).weight, inputs, damp(inputs.T @ inputs / 400, 0.001))
    mask = alps_mask(one.weight, one.damped.gram, BlockPattern(4))
    assert (mask.numpy() == pruning.admm(one.wide, one.gram, 4)).mean() > 0.99
    lost = [
        pruning.loss(one.wide, pruning.least_squares(one.wide, one.gram, keep.numpy()), one.gram).sum()
        for keep in (mask, swept(one, BlockPattern(4))[1])
    ]
    assert lost[0] < 0.97 * lost[1]


@pytest.mark.parametrize("length", LENGTHS)
def test_alps_is_legal_and_loses_less_than_the_others(length: int) -> None:
    """After the exact refit, which every mask gets."""
    for seed, columns in enumerate((64, 77)):
        one, pattern = layer(24, columns, seed), BlockPattern(length)
        mask = alps_mask(one.weight, one.damped.gram, pattern)
        assert_law(mask, pattern)
        first = pattern.select((one.weight * one.damped.gram.diagonal().sqrt()).abs())
        lost = [
            pruning.loss(one.wide, pruning.least_squares(one.wide, one.gram, keep.numpy()), one.gram).sum()
            for keep in (mask, swept(one, pattern)[1], first)
        ]
        assert lost[0] < lost[1] < lost[2]


def test_alps_comes_near_the_best_of_all_masks() -> None:
    """Two groups of four have 36 masks: more than half of what the first guess loses too much is won back."""
    one = layer(64, 8, 3)
    lost = []
    for first in range(16):
        for second in range(16):
            mask = np.array([[*(first >> np.arange(4) & 1), *(second >> np.arange(4) & 1)]]) == 1
            if mask[:, :4].sum() == mask[:, 4:].sum() == 2:
                mask = mask.repeat(64, axis=0)
                lost.append(pruning.loss(one.wide, pruning.least_squares(one.wide, one.gram, mask), one.gram))
    assert len(lost) == 36
    best = np.min(lost, axis=0)
    alps, first_guess = (
        pruning.loss(one.wide, pruning.least_squares(one.wide, one.gram, mask.numpy()), one.gram)
        for mask in (
            alps_mask(one.weight, one.damped.gram, BlockPattern(4)),
            BlockPattern(4).select((one.weight * one.damped.gram.diagonal().sqrt()).abs()),
        )
    )
    assert (alps >= best * (1 - 1e-9)).all()
    assert first_guess.sum() - alps.sum() > 0.5 * (first_guess.sum() - best.sum())


def test_alps_does_not_depend_on_the_units_of_the_inputs() -> None:
    """Inputs times powers of two, weights divided by them: the same numbers after scaling, so the same mask."""
    one, pattern = layer(8, 40), BlockPattern(8)
    factor = 2.0 ** torch.randint(-6, 7, (40,), generator=torch.Generator().manual_seed(0))
    mask = alps_mask(one.weight, one.damped.gram, pattern)
    assert torch.equal(mask, alps_mask(one.weight / factor, one.damped.gram * factor * factor[:, None], pattern))
    assert torch.equal(mask, alps_mask(one.weight, one.damped.gram, pattern))


def test_alps_without_a_pattern_keeps_everything() -> None:
    one = layer(3, 9)
    assert alps_mask(one.weight, one.damped.gram, BlockPattern(None)).all()


def test_alps_refuses_a_gram_matrix_that_is_not_positive_definite() -> None:
    gram = torch.ones(8, 8) * 3 - 2 * torch.eye(8)
    gram[0, 1] = gram[1, 0] = -3
    with pytest.raises(InputError, match=r"Gram matrix \[8, 8\] .* is not positive definite"):
        alps_mask(torch.randn(2, 8), gram, BlockPattern(4))


# ---- on a GPU


@pytest.mark.parametrize("scheme", [None, INT8])
@pytest.mark.parametrize("choose", [None, BlockPattern(8)], ids=str)
def test_work_to_repeat_is_that_of_the_panel(choose: BlockPattern | None, scheme: Scheme | None) -> None:
    """Of a new panel each time, so that what an earlier one left in the buffers would be seen."""
    shape = (16, 20)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(shape, generator=generator)
        corner = torch.eye(16) + torch.rand(16, 16, generator=generator).triu(1)
        made = torch.zeros(shape, dtype=scheme.torch_dtype if scheme else torch.float32)
        kept = (torch.rand(shape, generator=generator) > 0.5).float()
        both = [
            Panel(values.clone(), kept.clone(), made.clone(), values * 0, corner, values * 0 + 0.02, values * 0)
            for _ in range(2)
        ]
        repeated(shape, choose, scheme, torch.device("cpu"))(both[0])
        prune_panel(both[1], choose, scheme)
        assert both[1].made.any() and not both[1].kept.all()
        for name in ("made", "kept", "errors"):
            assert torch.equal(getattr(both[0], name), getattr(both[1], name))


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", [None, "int8", "fp8"])
@pytest.mark.parametrize("length", [4, 6, 8, None])
def test_captured_panels_are_those_that_are_run(
    length: int | None, scheme: str | None, monkeypatch: pytest.MonkeyPatch, replays: list[int]
) -> None:
    """Several times, so that what one panel leaves behind in the graph would be seen in the next; bit for bit. The
    graph of the narrower last panel is captured in the third sweep."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 200, generator=generator).cuda()
    damped = damp(inputs.T @ inputs / 400)
    repeated.cache_clear()
    for rows in (48, 48, 48, 64):
        weight = torch.randn(rows, 200, generator=generator).cuda()
        words: dict[str, Any] = {"choose": BlockPattern(length)} if length else {"keep": weight > 0}
        if scheme:
            words["grid"] = SCHEMES[scheme].grid(weight)
        order = block_order(weight, damped, BlockPattern(length)) if length else column_order(damped)
        found = sweep(weight, damped.gram, order, **words)
        with monkeypatch.context() as patch:
            patch.setattr(
                "slideconvert.prune.sweep.repeated",
                lambda _, choose, scheme, device: lambda panel: prune_panel(panel, choose, scheme),
            )
            wanted = sweep(weight, damped.gram, order, **words)
        assert torch.equal(found[1], wanted[1])
        assert torch.equal(floats(found[0]), floats(wanted[0]))
    assert len(replays) == 3 * 7 + 6 - 3 * captured.EAGER
