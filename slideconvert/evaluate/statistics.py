"""Numbers per token as people read them: means with standard errors, percentiles, perplexity and its ratio.

The standard errors are those of windows. The tokens of one sequence share its subject and its context, so they are no
independent draws; the usual formula, deviation / √tokens, takes them for some and comes out too small. Here a
sequence is one draw (a cluster): with the means m_w of W sequences of equal length the standard error of their mean is
√(Σ (m_w - m)² / (W (W - 1))), whatever correlation there is inside. It needs two sequences, is itself uncertain by
1 / √(2 (W - 1)), 6 % for 160, and takes neighbouring sequences of one document for independent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

PERCENTILES = {"kl_median": 50.0, "kl_99": 99.0, "kl_99_9": 99.9}


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """values [sequences, n] float64 -> the mean and its standard error over sequences; None for one sequence."""
    means = values.mean(1)
    error = float(means.std(correction=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(means.mean()), error


def perplexity_of(losses: Tensor) -> dict[str, float | None]:
    """losses [sequences, n] float64, in nats -> "perplexity", exp of their mean, and "perplexity_stderr", its
    first-order standard error: perplexity times that of the mean."""
    mean, error = mean_and_error(losses)
    return _exponential("perplexity", mean, error)


def ratio_of(losses: Tensor, base: Tensor) -> dict[str, float | None]:
    """losses, base: of checkpoint and base on the same tokens, [sequences, n] float64 -> "ratio", perplexity of the
    checkpoint over that of the base, and "ratio_stderr".

    The ratio is exp of the mean difference of the losses. Its error is that of the differences of single tokens, which
    is what remains of both errors when the covariance is taken off: what makes a text hard is hard for both. Without
    the covariance the error would be that of the perplexities themselves, often ten times as large.
    """
    mean, error = mean_and_error(losses - base)
    return _exponential("ratio", mean, error)


def divergence_summary(numbers: Tensor, mass: Tensor) -> dict[str, float | None]:
    """numbers [sequences, n, 3] as `divergence.divergence_of`; mass: [sequences, n] of the base's tokens that are kept.

    Returns kl_mean, kl_stderr, kl_median, kl_99, kl_99_9 (percentiles over tokens, interpolated linearly), kl_max, all
    in nats; same_top and same_top_stderr, acceptance and acceptance_stderr, and top_mass, shares from 0 to 1.
    """
    divergences, same, accepted = numbers.unbind(-1)
    found: dict[str, float | None] = {}
    for name, values in (("kl_mean", divergences), ("same_top", same), ("acceptance", accepted)):
        found[name], found[f"{name.removesuffix('_mean')}_stderr"] = mean_and_error(values)
    flat = divergences.flatten().numpy()
    found |= {name: float(np.percentile(flat, share)) for name, share in PERCENTILES.items()}
    return {**found, "kl_max": float(flat.max()), "top_mass": float(mass.mean())}


def by_position(losses: Tensor, base: Tensor | None, divergences: Tensor | None) -> list[dict[str, Any]]:
    """The same by the number of tokens before the predicted one, in powers of two: 1, 2 to 3, 4 to 7, …

    losses: [sequences, n], of tokens with 1 to n before them. base: of the base, None for the base itself; divergences:
    [sequences, n], None if unknown. A row has from, to, tokens, perplexity, perplexity_stderr, and with the base ratio,
    ratio_stderr, kl_mean and kl_stderr.
    """
    rows: list[dict[str, Any]] = []
    for power in range(losses.shape[1].bit_length()):
        first, last = 2**power, min(2 ** (power + 1) - 1, losses.shape[1])
        part = slice(first - 1, last)
        row = {"from": first, "to": last, "tokens": losses[:, part].numel(), **perplexity_of(losses[:, part])}
        if base is not None:
            row |= ratio_of(losses[:, part], base[:, part])
        if divergences is not None:
            row["kl_mean"], row["kl_stderr"] = mean_and_error(divergences[:, part])
        rows.append(row)
    return rows


def _exponential(name: str, mean: float, error: float | None) -> dict[str, float | None]:
    value = math.exp(mean)
    return {name: value, f"{name}_stderr": None if error is None else value * error}
