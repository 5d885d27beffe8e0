"""Divergence of distributions and statistics over tokens, one position and one token after the other, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: Any) -> Floats:
    """[vocabulary] logits -> probabilities."""
    scaled = np.asarray(logits, np.float64)
    powers = np.exp(scaled - scaled.max())
    return powers / powers.sum()


def merged(p: Floats, kept: list[int]) -> Floats:
    """The probabilities of the kept tokens, and of all others together as the last one."""
    named = set(kept)
    others = [token for token in range(len(p)) if token not in named]
    return np.array([*(p[token] for token in kept), sum(p[token] for token in others)])


def kl(p: Floats, q: Floats) -> float:
    return sum(float(a * (math.log(a) - math.log(b))) for a, b in zip(p, q, strict=True) if a > 0)


def accepted(p: Floats, q: Floats) -> float:
    return sum(min(float(a), float(b)) for a, b in zip(p, q, strict=True))


def most_likely(p: Floats, k: int) -> list[int]:
    return [int(token) for token in np.argsort(-p, kind="stable")[:k]]


def numbers(p_logits: Any, q_logits: Any, k: int) -> tuple[float, float, float]:
    """KL, same top token and acceptance at one position, with the k most likely tokens of p one by one."""
    p, q = softmax(p_logits), softmax(q_logits)
    kept = most_likely(p, k)
    return kl(merged(p, kept), merged(q, kept)), float(np.argmax(p) == np.argmax(q)), accepted(
        merged(p, kept), merged(q, kept)
    )  # fmt: skip


def numbers_of_lists(p_logits: Any, q_logits: Any, came: int, k: int) -> tuple[float, float, float]:
    """The same where q too is known by its k most likely tokens, and by the one that came: the tokens that both lists
    name, one by one."""
    p, q = softmax(p_logits), softmax(q_logits)
    named = {*most_likely(q, k), came}
    both = [token for token in most_likely(p, k) if token in named]
    same = float(np.argmax(p) == np.argmax(q))
    return kl(merged(p, both), merged(q, both)), same, accepted(merged(p, both), merged(q, both))


def standard_error(values: Floats) -> float:
    """Of the mean of values [windows, n], with a window as one draw."""
    means = [sum(window) / len(window) for window in values.tolist()]
    middle = sum(means) / len(means)
    return math.sqrt(sum((mean - middle) ** 2 for mean in means) / (len(means) * (len(means) - 1)))


def percentile(values: Floats, share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    ordered = sorted(values.ravel().tolist())
    place = share / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
