"""The input and the result of a calibrated method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..core.patterns import Pattern
from ..core.quantize import Weight
from ..core.schemes import Scheme
from .statistics import Statistics

P = TypeVar("P", bound=Pattern, covariant=True)
Total = Callable[[Tensor], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """The Total of a weight that is not divided."""
    return tensor


@dataclass(frozen=True)
class Problem(Generic[P]):
    """A linear to prune and round, or several linears with the same input, stacked along the rows.

    weight [N, K] float32. statistics: of the K inputs. scheme: the number format to round to, or a float scheme.
    latent [N, K] float32: the latent weights of ternary codes; None for other weights, and where they are unknown.
    total: sums a tensor over all parts of a weight whose rows are divided; this problem has some of them.
    """

    weight: Tensor
    statistics: Statistics
    pattern: P
    scheme: Scheme
    latent: Tensor | None = None
    total: Total = alone


@dataclass(frozen=True)
class Solved:
    """The weight [N, K] that a calibrated method returns. notes: sentences on anything degraded or unusual."""

    weight: Weight
    notes: tuple[str, ...] = ()


Solver = Callable[[Problem[Any]], Solved]
"""A calibrated method. It does not modify the weight of the problem."""
