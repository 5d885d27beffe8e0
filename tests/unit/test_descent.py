"""Descent over ternary codes against every change that there is, tried one by one in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.core import captured
from slideconvert.core.patterns import LENGTHS, BlockPattern
from slideconvert.prune import descent
from slideconvert.prune.descent import best_changes, descend, fit_scale, sweep_blocks
from tests.twins import ternary

ROWS = 12


def problem(columns: int, pattern: BlockPattern, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """codes, scale, target, gram and latent: codes that follow the pattern, and a target that they miss."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(ROWS, columns, generator=generator)
    inputs = torch.randn(4 * columns, columns, generator=generator)
    inputs += 0.7 * inputs.roll(1, 1)
    gram = inputs.T @ inputs / len(inputs) + 0.1 * torch.eye(columns)
    dense = latent.round().clamp(-1, 1)
    codes = dense * pattern.select(torch.rand(ROWS, columns, generator=generator))
    scale = 0.5 + torch.rand(ROWS, 1, generator=generator)
    target = (dense + 0.2 * torch.randn(ROWS, columns, generator=generator)) * scale
    return codes, scale, target, gram, latent * scale


def losses(
    codes: Tensor, scale: Tensor, target: Tensor, gram: Tensor, latent: Tensor | None, prior: float
) -> list[float]:
    own = latent.double().numpy() if latent is not None else [None] * len(codes)
    rows = zip(codes.double().numpy(), scale[:, 0].tolist(), target.double().numpy(), own, strict=True)
    return [ternary.loss(row, s, wanted, gram.double().numpy(), m, prior) for row, s, wanted, m in rows]


def change_group(
    codes: Tensor,
    group: slice,
    scale: Tensor,
    target: Tensor,
    gram: Tensor,
    pattern: BlockPattern,
    latent: Tensor | None,
    prior: float,
) -> None:
    """One group in place, by gradients taken anew."""
    slope = (codes * scale - target) @ gram[:, group]
    own = None if latent is None else latent[:, group]
    given = (codes[:, group], scale, slope, gram[group, group], torch.tensor(prior))
    codes[:, group] += best_changes(pattern, *given, own)


@pytest.mark.parametrize("known", [True, False], ids=["latent", "no latent weights"])
@pytest.mark.parametrize("columns", [8, 9, 11])
@pytest.mark.parametrize("length", [4, 6, 8])
def test_each_group_takes_the_best_of_all_changes(length: int, columns: int, known: bool) -> None:
    """Group after group, the loss is what exhaustive search finds possible. Losses are near 1; sums of a hundred
    float32 products are off by 1e-5 at most."""
    pattern = BlockPattern(length)
    codes, scale, target, gram, latent = problem(columns, pattern, seed=length)
    own, prior = (latent, 0.3) if known else (None, 0.0)
    improved = 0
    for start in range(0, columns, length):
        group = slice(start, min(start + length, columns))
        most = min(pattern.most_nonzeros, group.stop - group.start)
        expected = [
            ternary.best_change(
                codes[row].double().numpy(),
                group,
                most,
                float(scale[row]),
                target[row].double().numpy(),
                gram.double().numpy(),
                None if own is None else own[row].double().numpy(),
                prior,
            )
            for row in range(ROWS)
        ]
        before = losses(codes, scale, target, gram, own, prior)
        change_group(codes, group, scale, target, gram, pattern, own, prior)
        after = losses(codes, scale, target, gram, own, prior)
        assert after == pytest.approx(expected, rel=1e-4, abs=1e-5)
        pattern.check(codes, "codes")
        improved += sum(b - a > 1e-3 for b, a in zip(before, after, strict=True))
    assert improved > 2  # there was something to do


@pytest.mark.parametrize("length", LENGTHS)
def test_the_loss_falls_and_the_pattern_stays(length: int) -> None:
    """Through blocks of several groups, ragged ends included: at one scale no row gets worse by a pass."""
    pattern = BlockPattern(length)
    codes, scale, target, gram, latent = problem(75, pattern)
    before = losses(codes, scale, target, gram, latent, 0.3)
    sweep_blocks(codes, scale, target, gram, pattern, torch.tensor(0.3), latent)
    pattern.check(codes, "codes")
    assert codes.unique().tolist() == [-1.0, 0.0, 1.0]
    after = losses(codes, scale, target, gram, latent, 0.3)
    assert all(new <= old + 1e-4 for old, new in zip(before, after, strict=True)) and sum(after) < sum(before) - 1


@pytest.mark.parametrize("length", LENGTHS)
def test_without_masters_all_steps_serve_one_loss(length: int) -> None:
    """Passes and scales together: no row ends worse than it began, and no other scale would do better."""
    pattern = BlockPattern(length)
    codes, scale, target, gram, _ = problem(75, pattern)
    before = losses(codes, scale, target, gram, None, 0.0)
    made, fitted = descend(codes, scale, target, gram, pattern, None)
    best = losses(made, fitted, target, gram, None, 0.0)
    assert all(new <= old + 1e-4 for old, new in zip(before, best, strict=True)) and sum(best) < sum(before) - 1
    for factor in (0.99, 1.01):
        others = losses(made, fitted * factor, target, gram, None, 0.0)
        assert all(one <= other for one, other in zip(best, others, strict=True))


def test_masters_hold_their_codes() -> None:
    """Of the codes that descent changes, more agree with their latent weights when these are known."""
    pattern = BlockPattern(8)
    codes, scale, target, gram, latent = problem(160, pattern)
    away = {}
    for known in (True, False):
        made, fitted = descend(codes, scale, target, gram, pattern, latent if known else None)
        away[known] = float((made * fitted - latent).square().sum())
    assert away[True] < 0.99 * away[False]


def test_gradients_kept_by_blocks_are_those_of_the_whole() -> None:
    """A pass over 96 columns is that of one group after another, each with gradients taken anew."""
    pattern = BlockPattern(8)
    codes, scale, target, gram, latent = problem(96, pattern)
    together, singly = codes.clone(), codes.clone()
    sweep_blocks(together, scale, target, gram, pattern, torch.tensor(0.2), latent)
    for start in range(0, 96, 8):
        change_group(singly, slice(start, start + 8), scale, target, gram, pattern, latent, 0.2)
    assert torch.equal(together, singly) and not torch.equal(together, codes)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("slope", "codes", "expected"),
    [
        ([-0.5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),  # 2 g + 1 = 0: not worth a change
        ([0.5, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, -2, -2], [1, 1, 0, 0], [-1, 0, 1, 0]),  # each of four moves of a zero gains 4
        ([-2, -2, 0, 0], [1, 0, 1, 0], [0, 1, -1, 0]),  # the pattern has no room for the second alone, which gains 3
        ([0, -2, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]),  # of the same gain with and without a second change
    ],
)
def test_of_equal_changes_the_first_and_least_is_made(
    slope: list[float], codes: list[float], expected: list[float], device: str
) -> None:
    given = (torch.tensor([part], dtype=torch.float32, device=device) for part in (codes, [1], slope))
    made = best_changes(BlockPattern(4), *given, torch.eye(4, device=device), torch.zeros((), device=device))
    assert made.tolist() == [expected]


@pytest.mark.parametrize("known", [True, False], ids=["latent", "no latent weights"])
def test_work_to_repeat_is_that_of_the_panel(known: bool) -> None:
    """Of a new panel each time, so that what an earlier one left behind would be seen."""
    pattern = BlockPattern(6)
    for seed in range(3):
        codes, scale, target, gram, latent = problem(20, pattern, seed)
        given = (codes, scale, (codes * scale - target) @ gram, gram, torch.tensor(0.3), *([latent] if known else []))
        expected = best_changes(pattern, *given)
        repeated = descent._repeated(pattern, torch.device("cpu"), *(part.shape for part in given))
        assert expected.any() and torch.equal(repeated(*given), expected)


def test_a_row_without_weights_keeps_its_scale() -> None:
    scale = torch.tensor([[0.25], [0.5]])
    codes = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])  # the second would want a scale below zero
    assert torch.equal(fit_scale(codes, scale, torch.ones(2, 2), torch.eye(2)), scale)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [4, 8, 10])
def test_a_gpu_descends_as_far(length: int) -> None:
    """Ties and sums may fall otherwise; the losses agree to a few parts in a thousand on average."""
    pattern = BlockPattern(length)
    made = problem(256, pattern)
    here = descend(*made[:4], pattern, made[4])
    there = [part.cpu() for part in descend(*(part.cuda() for part in made[:4]), pattern, made[4].cuda())]
    pattern.check(there[0], "codes")
    both = [float(np.mean(losses(codes, scale, made[2], made[3], None, 0.0))) for codes, scale in (here, tuple(there))]
    assert both[1] == pytest.approx(both[0], rel=5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("known", [True, False], ids=["latent", "no latent weights"])
@pytest.mark.parametrize("length", [4, 6, 8])
def test_a_graph_descends_as_the_same_kernels_do(
    length: int, known: bool, replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two linears of one shape one after the other, bit for bit: six whole panels and a narrower one, whose graph the
    third pass captures."""
    pattern = BlockPattern(length)
    problems = [tuple(part.cuda() for part in problem(200, pattern, seed)) for seed in (1, 2)]

    def descended() -> list[tuple[Tensor, Tensor]]:
        descent._repeated.cache_clear()
        return [descend(*made[:4], pattern, made[4] if known else None) for made in problems]

    found = descended()
    panels = 2 * descent.ROUNDS * 7
    assert len(replays) == panels - 2 * captured.EAGER
    monkeypatch.setattr(captured, "EAGER", 1 << 30)
    expected = descended()
    assert len(replays) == panels - 2 * 2
    for (codes, scale), (wanted, fitted) in zip(found, expected, strict=True):
        assert torch.equal(codes, wanted) and torch.equal(scale, fitted)
    assert not torch.equal(found[0][0], problems[0][0])
    descent._repeated.cache_clear()
