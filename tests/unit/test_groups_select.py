"""Which groups of a linear stay: group patterns and their words, the law, the scores, ADMM, and the sweep on groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slideconvert.core.patterns import BlockPattern, GroupPattern, Pattern, parse_pattern
from slideconvert.core.quantize import QuantizedWeight
from slideconvert.core.schemes import BF16
from slideconvert.errors import InputError, PatternError
from slideconvert.prune import METHODS, Problem
from slideconvert.prune.alps import alps_mask
from slideconvert.prune.gqsa import group_saliency
from slideconvert.prune.refit import refit
from slideconvert.prune.sweep import column_order, sweep
from tests.helpers.correlated import Layer, layer, statistics
from tests.helpers.matrices import examples
from tests.twins import groups as twin
from tests.twins import pruning
from tests.unit.test_groups_grid import scheme_of

BY_GROUP = [method for method in METHODS.values() if method.whole_groups]

# ---- patterns and their words


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("1x16:50%", GroupPattern(16, 0.5)),
        ("1x4:0%", GroupPattern(4, 0.0)),
        ("1x128:12.5%", GroupPattern(128, 0.125)),
        ("1x8:29%", GroupPattern(8, 0.29)),
        ("1x16:33.3333%", GroupPattern(16, 0.333333)),
        ("1x16:50%:1.5", GroupPattern(16, 0.5, 1.5)),
        ("1x16:50%:1", GroupPattern(16, 0.5, 1.0)),
    ],
)
def test_words_of_patterns(text: str, pattern: GroupPattern) -> None:
    assert parse_pattern(text) == parse_pattern(f" {text} ") == pattern
    assert str(pattern) == text
    assert pattern.slug == text.replace(":", "_").replace("%", "")


@given(
    st.sampled_from([4, 8, 16, 32, 64, 128]),
    st.floats(0, 0.9),
    st.one_of(st.none(), st.floats(1, 1e5)),
    st.integers(1, 30000),
    st.integers(1, 300),
)
@examples(300)
def test_a_pattern_read_again_keeps_as_many(
    size: int, sparsity: float, cap: float | None, rows: int, across: int
) -> None:
    """config.json has the pattern in words, and how many groups there are follows from them."""
    pattern, shape = GroupPattern(size, sparsity, cap), (rows, across * size)
    again = parse_pattern(str(pattern))
    assert isinstance(again, GroupPattern) and again == pattern
    assert (again.kept(shape), again.most_in_row(shape)) == (pattern.kept(shape), pattern.most_in_row(shape))
    total = rows * across
    over = pattern.kept(shape) - (1 - sparsity) * total
    assert pattern.kept(shape) == total or pattern.kept(shape) % 8 == 0
    assert -0.5 - total * 1e-6 <= over <= 7.5 + total * 1e-6


@pytest.mark.parametrize(
    "text",
    ["1x16", "1x16:", "1x16:50", "16:50%", "1x16:50%:", "2x16:50%", "1x16:-5%", "1x:50%", "1x16:50%:x", "1x0:50%"],
)
def test_words_that_are_no_pattern(text: str) -> None:
    with pytest.raises(InputError, match=r"pattern|groups of 0"):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((16, -0.1), "sparsity -0.1 is out of range"),
        ((16, 0.95), "sparsity 0.95 is out of range"),
        ((16, math.nan), "sparsity nan"),
        ((16, 0.5, 0.99), "row cap 0.99"),
        ((16, 0.5, math.nan), "row cap nan"),
        ((16, 0.5, math.inf), "row cap inf"),
    ],
)
def test_patterns_that_cannot_be(words: tuple[int, float], said: str) -> None:
    with pytest.raises(PatternError, match=said):
        GroupPattern(*words)


def test_shapes_that_do_not_fit() -> None:
    GroupPattern(16, 0.5).check_shape((8, 64), "w")
    with pytest.raises(PatternError, match=r"w: 72 input .* group size 16 \(use a group size of 4, 8\)"):
        GroupPattern(16, 0.5).check_shape((8, 72), "w")
    with pytest.raises(PatternError, match=r"w: 77 input .* group size 16 \(keep this linear"):
        GroupPattern(16, 0.5).check_shape((8, 77), "w")
    GroupPattern(16, 0.75).check_shape((8, 64), "w")  # one group a row
    with pytest.raises(PatternError, match=r"w: 1x16:80% keeps 8 groups of 16 rows with 2 each"):
        GroupPattern(16, 0.8).check_shape((16, 32), "w")


# ---- the law


@pytest.mark.parametrize(
    ("rows", "across", "sparsity"), [(3, 4, 0.4), (4, 3, 0.34), (2, 6, 0.4), (8, 2, 0.5), (1, 10, 0.25)]
)
@pytest.mark.parametrize("cap", [None, 1.0, 1.2, 2.0])
def test_kept_groups_are_the_best_choice(rows: int, across: int, sparsity: float, cap: float | None) -> None:
    """All choices of 8 groups: of those that leave every row one and none too many the one with the largest sum, ties
    by place. Scores of 0 and 1 (all, or 400 of them), which tie everywhere, and others that never do."""
    pattern = GroupPattern(4, sparsity, cap)
    shape = (rows, 4 * across)
    kept, most = pattern.kept(shape), pattern.most_in_row(shape)
    assert kept == 8
    choices, rng = twin.masks(rows, across, kept, most), np.random.default_rng(0)
    ties = np.arange(2 ** (rows * across))[:, None] >> np.arange(rows * across) & 1
    for scores in [
        *rng.permutation(ties)[:400],
        *rng.random((60, rows * across)),
        *rng.integers(0, 3, (100, rows * across)),
    ]:
        score = scores.reshape(rows, across).astype(np.float64)
        made = pattern.select_groups(torch.from_numpy(score).float())
        np.testing.assert_array_equal(made.numpy(), twin.best(score.astype(np.float32).astype(np.float64), choices))


@given(
    st.integers(1, 40), st.integers(1, 20), st.floats(0, 0.9), st.one_of(st.none(), st.floats(1, 3)), st.integers(0, 99)
)
@examples(200)
def test_laws_of_what_stays(rows: int, across: int, sparsity: float, cap: float | None, seed: int) -> None:
    pattern, shape = GroupPattern(8, sparsity, cap), (rows, 8 * across)
    rng = np.random.default_rng(seed)
    score = torch.from_numpy(
        rng.integers(0, 5, (rows, across)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, (rows, 1))
    )
    if pattern.kept(shape) < rows:
        with pytest.raises(PatternError, match="some rows would be empty"):
            pattern.select_groups(score.float())
        return
    keep = pattern.select_groups(score.float())
    assert int(keep.sum()) == pattern.kept(shape)
    assert int(keep.sum(1).min()) >= 1 and int(keep.sum(1).max()) <= pattern.most_in_row(shape)
    assert torch.equal(keep, pattern.select_groups(score.float()))
    weight = keep.repeat_interleave(pattern.size, 1).float()
    assert weight.shape == shape and torch.equal(
        weight.view(rows, across, 8).amin(2), weight.view(rows, across, 8).amax(2)
    )
    pattern.check(weight, "w")


def test_too_many_groups_are_found() -> None:
    pattern = GroupPattern(4, 0.5, 1.25)
    weight = pattern.select(torch.arange(32.0).view(4, 8)).to(torch.int8)
    pattern.check(weight, "w")
    more = weight.clone()
    more[0, 4 * int(weight[0, ::4].argmin())] = 1
    with pytest.raises(PatternError, match=r"w: 17 groups of 4 are non-zero, 1x4:50%:1.25 allows 16"):
        pattern.check(more, "w")
    crowded = torch.zeros(4, 32)
    crowded[2, ::4][:6] = 1
    with pytest.raises(PatternError, match=r"row 2 has 6 non-zero groups, 1x4:50%:1.25 allows 5 in one row"):
        pattern.check(crowded, "w")


# ---- scores, on layers like those of test_solvers.py


@pytest.mark.parametrize("size", [4, 8, 16])
def test_scores_equal_brute_force(size: int) -> None:
    one, pattern = layer(6, 48, size), GroupPattern(size, 0.5)
    np.testing.assert_allclose(
        group_saliency(one.weight, one.damped, pattern), twin.saliency(one.wide, one.gram, size), rtol=1e-4
    )


@pytest.mark.parametrize("size", [4, 16])
def test_the_refit_on_groups_is_least_squares(size: int) -> None:
    """numpy's lstsq on the factor of the Gram matrix, row by row."""
    one, pattern = layer(8, 64, 3), GroupPattern(size, 0.5)
    keep = pattern.select(group_saliency(one.weight, one.damped, pattern))
    made = refit(one.weight, one.weight * keep, keep, one.damped.gram, 200).double().numpy()
    factor = np.linalg.cholesky(one.gram).T
    for row, there in enumerate(keep.numpy()):
        expected = np.linalg.lstsq(factor[:, there], factor @ one.wide[row], rcond=None)[0]
        np.testing.assert_allclose(made[row, there], expected, atol=1e-5 * np.abs(expected).max())
        assert not made[row, ~there].any()


def refitted_loss(one: Layer, keep: NDArray[np.bool_]) -> float:
    return float(pruning.loss(one.wide, pruning.least_squares(one.wide, one.gram, keep), one.gram).sum())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_admm_takes_as_many_groups_and_loses_less(size: int, sparsity: float) -> None:
    """After the refit that every mask gets: never more than the exact score in one shot, which beats the paper's."""
    lost = np.zeros(3)
    for seed in range(3):
        one, pattern = layer(24, 96, seed), GroupPattern(size, sparsity, 1.5 if seed == 2 else None)
        mask = alps_mask(one.weight, one.damped.gram, pattern)
        groups = mask.view(24, -1, size)
        assert torch.equal(groups.all(2), groups.any(2)) and int(mask.sum()) == size * pattern.kept((24, 96))
        assert int(groups.all(2).sum(1).min()) >= 1 and int(groups.all(2).sum(1).max()) <= pattern.most_in_row((24, 96))
        assert torch.equal(mask, alps_mask(one.weight, one.damped.gram, pattern))
        exact = torch.from_numpy(twin.removal_losses(one.wide, one.gram, size)).float()
        shots = [pattern.select(score) for score in (exact, group_saliency(one.weight, one.damped, pattern))]
        found = [refitted_loss(one, keep.numpy()) for keep in (mask, *shots)]
        assert found[0] <= found[1]
        lost += found
    assert lost[0] < 0.99 * lost[1] and lost[1] < lost[2]


def test_admm_keeps_everything_where_nothing_goes() -> None:
    one = layer(3, 16)
    assert alps_mask(one.weight, one.damped.gram, GroupPattern(4, 0.0)).all()


# ---- the sweep


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size", "columns"), [(4, 44), (8, 40), (16, 80)])
def test_sweep_on_a_grid_of_groups_is_gptq(size: int, columns: int, bits: int, symmetric: bool) -> None:
    """Codes equal the twin's, in rows without a decision nearer to the next code than float32 can tell; columns come in
    an order of their own, over more than one block."""
    one, scheme = layer(12, columns, size + bits), scheme_of(bits, size, symmetric=symmetric)
    groups = torch.rand(12, columns // size, generator=torch.Generator().manual_seed(1)) < 0.6
    keep = groups.repeat_interleave(size, 1)
    grid, order = scheme.grid(one.weight * keep), column_order(one.damped)
    assert order.tolist() != list(range(columns))
    scale = grid.scale.float().numpy()
    zero = np.full(scale.shape, scheme.middle) if grid.zero is None else grid.zero.long().numpy()
    codes, margins = twin.gptq(one.wide, one.gram, order.tolist(), keep.numpy(), scale, zero, bits)
    made, kept = sweep(one.weight, one.damped.gram, order, keep=keep, grid=grid)
    assert isinstance(made, QuantizedWeight) and torch.equal(kept, keep) and made.grid == grid
    sure = margins > 1e-3
    assert sure.sum() >= (6 if bits == 4 else 3)
    np.testing.assert_array_equal(made.codes.numpy()[sure], codes[sure])
    assert not made.codes[~keep].any()
    plain = twin.codes((one.weight * keep).numpy(), scale, zero, bits)
    assert (made.codes.numpy() != plain).any(), "rounding is made up for"
    again = sweep(one.weight, one.damped.gram, order, keep=keep, grid=grid)[0]
    assert isinstance(again, QuantizedWeight) and torch.equal(again.codes, made.codes)


@pytest.mark.parametrize("length", [4, 8, 10])
def test_sweep_prunes_and_rounds_to_groups_at_once(length: int) -> None:
    """hessian on 2:L with a scale for every 8 weights: groups of the pattern and of the scales lie as they like."""
    one, scheme = layer(8, 40, length), scheme_of(4, 8, symmetric=False)
    solve = METHODS["hessian"].solve
    assert solve is not None
    made = solve(Problem(one.weight, statistics(one.inputs), BlockPattern(length), scheme)).weight
    assert isinstance(made, QuantizedWeight) and made.scheme == scheme and made.zero is not None
    BlockPattern(length).check(made.codes, "w")
    stored = made.codes.int() + made.zero.int().repeat_interleave(8, 1)
    assert int(stored.min()) >= 0 and int(stored.max()) <= 15
    lost = float((made.dequantize() - one.weight).square().sum() / one.weight.square().sum())
    assert lost < 1


# ---- whole methods


PATTERNS: list[Pattern] = [
    GroupPattern(8, 0.5),
    GroupPattern(8, 0.0),
    GroupPattern(8, 0.8),
    GroupPattern(8, 0.5, 1.2),
]


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", BY_GROUP, ids=lambda method: method.name)
def test_every_method_takes_groups(method: object, pattern: GroupPattern, bits: int) -> None:
    """As many as are asked for, whatever the inputs are, and leaves the source alone. A column of dead inputs."""
    one = layer(10, 56, 5)
    inputs = one.inputs.clone()
    inputs[:, 9] = 0
    dense = inputs + 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1)) * (inputs != 0)
    before = one.weight.clone()
    scheme = BF16 if bits == 16 else scheme_of(bits, 8, symmetric=False)
    solve = getattr(method, "solve")  # noqa: B009
    for known in (statistics(inputs), statistics(inputs, dense, held=40)):
        made = solve(Problem(one.weight, known, pattern, scheme)).weight
        assert torch.equal(one.weight, before)
        pattern.check(made.codes if isinstance(made, QuantizedWeight) else made, "w")
        weight = made.dequantize() if isinstance(made, QuantizedWeight) else made
        there = weight.view(10, 7, 8).ne(0).any(2)
        assert int(there.sum()) == pattern.kept((10, 56))
        assert not weight[:, 9].any()
        assert float((weight - before).square().sum() / before.square().sum()) < 1


def test_more_work_loses_less() -> None:
    """On the tokens of calibration, in 4 bits: gqsa, solved for all groups at once, against the paper's first step."""
    lost = {}
    one, pattern = layer(24, 96, 2), GroupPattern(16, 0.5)
    known = statistics(one.inputs)
    for name in ("gqsa", "saliency"):
        solve = METHODS[name].solve
        assert solve is not None
        made = solve(Problem(one.weight, known, pattern, scheme_of(4, 16, symmetric=False))).weight
        assert isinstance(made, QuantizedWeight)
        lost[name] = pruning.loss(one.wide, made.dequantize().double().numpy(), known.gram.double().numpy()).sum()
    assert lost["gqsa"] < 0.8 * lost["saliency"]
