"""Divergence of two distributions and its statistics, against a twin in NumPy that takes one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.evaluate.divergence import (
    SMALLEST_REST,
    Top,
    divergence,
    divergence_of_tops,
    losses_of,
    top_of,
)
from slideconvert.evaluate.statistics import by_position, divergence_summary, mean_and_error, perplexity_of, ratio_of
from tests.twins import scores

WORDS, POSITIONS = 60, 40
NATS = 1e-5
"""Logits of up to 32 and their log-sum-exp are float32: each is off by 2e-6 (an ulp) at most after a few roundings, a
log probability by twice that, and a sum of p (log p - log q) over probabilities by no more than both of them."""


def drawn(seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(POSITIONS, WORDS, generator=torch.Generator().manual_seed(seed)) * spread


def compared(p: Tensor, q: Tensor, k: int) -> Tensor:
    """[n, 3] as eval computes it."""
    return divergence(kept(p, k), q.clone(), q.logsumexp(-1).double())


def kept(logits: Tensor, k: int) -> Top:
    return top_of(logits.clone(), logits.logsumexp(-1).double(), k)


@pytest.fixture
def near() -> tuple[Tensor, Tensor]:
    """Logits of a model and of one that is near it, as after quantization, and far at two positions."""
    p = drawn(0)
    q = p + drawn(1, 0.3)
    q[5], p[6, 3] = drawn(2)[5], 28.0
    return p, q


@pytest.mark.parametrize("k", [1, 7, WORDS - 1, WORDS, 1000])
def test_numbers_are_those_of_the_twin(near: tuple[Tensor, Tensor], k: int) -> None:
    p, q = near
    expected = np.array([scores.numbers(a, b, k) for a, b in zip(p.numpy(), q.numpy(), strict=True)])
    np.testing.assert_allclose(compared(p, q, k).numpy(), expected, rtol=0, atol=NATS)


def test_losses_are_those_of_torch(near: tuple[Tensor, Tensor]) -> None:
    wanted = torch.arange(POSITIONS) % WORDS
    expected = torch.nn.functional.cross_entropy(near[0].double(), wanted, reduction="none")
    torch.testing.assert_close(losses_of(near[0], wanted)[0], expected, rtol=0, atol=NATS)


@pytest.mark.parametrize("k", [1, 4, 16])
def test_what_lumping_the_rest_costs(near: tuple[Tensor, Tensor], k: int) -> None:
    """The docstring's equation and its bounds: KL is too low by P KL(within the rest) ≤ P d² / 2, acceptance too high
    by at most min(P, Q)."""
    p, q = near
    found, whole = compared(p, q, k), compared(p, q, WORDS)
    missing = (whole - found)[:, 0].numpy()
    assert (missing > -2 * NATS).all() and missing.max() > 1e-3
    for place in range(POSITIONS):
        a, b = scores.softmax(p[place]), scores.softmax(q[place])
        others = [token for token in range(WORDS) if token not in scores.most_likely(a, k)]
        a_rest, b_rest = a[others], b[others]
        mass, other_mass = a_rest.sum(), b_rest.sum()
        inside = scores.kl(a_rest / mass, b_rest / other_mass)
        assert missing[place] == pytest.approx(mass * inside, abs=2 * NATS)
        within = np.abs(np.log(b_rest / a_rest) - math.log(other_mass / mass)).max()
        assert mass * inside <= mass * within**2 / 2
        extra = float(found[place, 2] - whole[place, 2])
        assert -2 * NATS < extra <= min(mass, other_mass) + 2 * NATS


def test_more_tokens_only_raise_the_bound(near: tuple[Tensor, Tensor]) -> None:
    found = torch.stack([compared(*near, k) for k in range(1, WORDS + 1)])
    assert (found[1:, :, 0] - found[:-1, :, 0] > -2 * NATS).all()
    assert (found[1:, :, 2] - found[:-1, :, 2] < 2 * NATS).all()
    assert (found[:, :, 1] == found[0, :, 1]).all()


def test_a_model_is_not_far_from_itself() -> None:
    p = drawn(0)
    p[:, 7] = p[:, 11] = p.amax(-1)  # ties: whichever comes first
    found = compared(p, p, 16)
    assert found[:, 0].abs().max() < NATS
    assert (found[:, 1] == 1).all() and (found[:, 2] - 1).abs().max() < NATS


def test_words_that_a_model_excludes() -> None:
    """-inf in both costs nothing; where the base expects the token, no number can say how far they are."""
    p, q = drawn(0), drawn(1)
    p[:, 3] = q[:, 3] = q[:, 4] = -torch.inf
    p[0, 4] = -torch.inf
    found = compared(p, q, WORDS)[:, 0]
    assert torch.isfinite(found[0]) and torch.isinf(found[1:]).all()


def reported(logits: Tensor, k: int, wanted: Tensor) -> Top:
    """What a server tells: its k most likely tokens and the one that came, in any order."""
    log_q = logits.log_softmax(-1).double()
    rows = [{*log_q[n].topk(k).indices.tolist(), int(wanted[n])} for n in range(len(logits))]
    tokens = torch.tensor([sorted(row, reverse=True) + [-1] * (k + 1 - len(row)) for row in rows])
    values = torch.where(tokens >= 0, log_q.gather(-1, tokens.clamp(min=0)), -torch.inf)
    return Top(tokens, values, torch.log1p(-values.exp().sum(-1).clamp(max=1)))


@pytest.mark.parametrize(("k", "theirs"), [(1, 1), (8, 3), (8, 8), (8, 40), (WORDS, WORDS - 1)])
def test_two_tops_are_compared_by_the_tokens_of_both(near: tuple[Tensor, Tensor], k: int, theirs: int) -> None:
    p, q = near
    wanted = torch.arange(POSITIONS) % WORDS
    found = divergence_of_tops(kept(p, k), reported(q, theirs, wanted)).numpy()
    for place in range(POSITIONS):
        a, b = scores.softmax(p[place]), scores.softmax(q[place])
        told = {*scores.most_likely(b, theirs), int(wanted[place])}
        both = [token for token in scores.most_likely(a, k) if token in told]
        a_both, b_both = scores.merged(a, both), scores.merged(b, both)
        b_both[-1] = max(b_both[-1], SMALLEST_REST)
        same = float(np.argmax(a) == np.argmax(b))
        expected = [scores.kl(a_both, b_both), same, scores.accepted(a_both, b_both)]
        rest = a_both[-1] * 4e-6 / b_both[-1]  # what Q leaves of 1 is off by as much as the logarithms
        np.testing.assert_allclose(found[place], expected, rtol=0, atol=NATS + rest)


def windows(seed: int = 3) -> Tensor:
    """[windows, n] of numbers whose mean differs from window to window."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(9, 31, generator=generator, dtype=torch.float64) + torch.rand(9, 1, generator=generator) * 2


def test_standard_errors_are_those_of_windows() -> None:
    values = windows()
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(values.mean().item())
    assert error == pytest.approx(scores.standard_error(values.numpy()))
    assert mean_and_error(values[:1])[1] is None
    # A window that says one thing 31 times says it once.
    repeated = values.mean(1, keepdim=True).expand(9, 31)
    assert mean_and_error(repeated)[1] == pytest.approx(error)


def test_standard_errors_cover_the_mean_of_correlated_tokens() -> None:
    """Windows with a common part of as much variance as each token's own: of 2000 means of 16 windows, 95 % lie within
    2.13 standard errors of the truth (Student's t of 15 degrees of freedom; 2000 trials tell 95 % to 1.5 % at three
    standard deviations). Tokens taken for independent would cover 45 %."""
    generator = torch.Generator().manual_seed(0)
    covered = independent = 0
    for _ in range(2000):
        values = torch.randn(16, 24, generator=generator) + torch.randn(16, 1, generator=generator)
        mean, error = mean_and_error(values.double())
        assert error is not None
        covered += abs(mean) < 2.131 * error
        independent += abs(mean) < 1.96 * values.std().item() / math.sqrt(values.numel())
    assert abs(covered / 2000 - 0.95) < 0.015
    assert independent / 2000 < 0.6


def test_the_error_of_a_ratio_is_that_of_the_differences() -> None:
    """exp of a mean difference; first-order errors: with a covariance, twice of it is taken off."""
    base, change = windows(3), windows(4) * 0.05
    found, plain = ratio_of(base + change, base), [perplexity_of(losses) for losses in (base + change, base)]
    assert found["ratio"] == pytest.approx(plain[0]["perplexity"] / plain[1]["perplexity"])
    a, b = (base + change).mean(1).numpy(), base.mean(1).numpy()
    variance = (np.var(a, ddof=1) + np.var(b, ddof=1) - 2 * np.cov(a, b)[0, 1]) / len(a)
    assert found["ratio_stderr"] == pytest.approx(found["ratio"] * math.sqrt(variance))
    assert found["ratio_stderr"] < plain[1]["perplexity_stderr"] / plain[1]["perplexity"] / 5


def test_perplexity_has_its_first_order_error() -> None:
    losses = windows()
    found = perplexity_of(losses)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()))
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * scores.standard_error(losses.numpy()))


def test_summary_names_mean_percentiles_and_shares() -> None:
    values, same, accepted = windows(5) ** 4, (windows(6) > 1).double(), windows(7) / 4
    mass = windows(8) / 3
    found = divergence_summary(torch.stack([values, same, accepted], -1), mass)
    for name, share in (("kl_median", 50), ("kl_99", 99), ("kl_99_9", 99.9), ("kl_max", 100)):
        assert found[name] == pytest.approx(scores.percentile(values.numpy(), share)), name
    for name, error, given in (
        ("kl_mean", "kl_stderr", values),
        ("same_top", "same_top_stderr", same),
        ("acceptance", "acceptance_stderr", accepted),
    ):
        assert found[name] == pytest.approx(given.mean().item())
        assert found[error] == pytest.approx(scores.standard_error(given.numpy()))
    assert found["top_mass"] == pytest.approx(mass.mean().item())


@pytest.mark.parametrize("n", [1, 2, 7, 31])
def test_positions_are_powers_of_two_and_all_there(n: int) -> None:
    losses, base = windows(3)[:, :n], windows(4)[:, :n]
    rows = by_position(losses, base, losses - base)
    edges = [place for row in rows for place in range(row["from"], row["to"] + 1)]
    assert edges == list(range(1, n + 1))
    assert all(row["from"] == 2**power for power, row in enumerate(rows))
    for row in rows:
        part = slice(row["from"] - 1, row["to"])
        assert row["tokens"] == 9 * (row["to"] - row["from"] + 1)
        assert row["perplexity"] == pytest.approx(math.exp(losses[:, part].mean()))
        assert row["kl_mean"] == pytest.approx((losses - base)[:, part].mean().item())
        assert row["ratio"] == pytest.approx(math.exp(row["kl_mean"]))
    alone = by_position(losses, None, None)
    assert not {"ratio", "kl_mean"} & alone[0].keys()
