"""Wanda: the two weights of smallest |w| · ||X_j|| in each group go, the others stay (arXiv 2306.11695)."""

from __future__ import annotations

from torch import Tensor

from ..core.patterns import BlockPattern


def wanda(weight: Tensor, norms: Tensor, pattern: BlockPattern) -> Tensor:
    """weight [N, K] float32, norms [K] root mean square of each input -> keep mask [N, K] bool."""
    return pattern.select(weight.abs() * norms)
