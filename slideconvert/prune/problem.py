"""What a calibrated method is given of a linear, and what it returns."""

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


@dataclass(frozen=True)
class Problem(Generic[P]):
    """A linear to prune and round, or several with one input, whose rows stand below each other.

    weight [N, K] float32. statistics: of the inputs [K]. scheme: of the codes to find, or one without codes.
    latent [N, K] float32: what a ternary weight was rounded from; None for others and where it is not known.
    """

    weight: Tensor
    statistics: Statistics
    pattern: P
    scheme: Scheme
    latent: Tensor | None = None


@dataclass(frozen=True)
class Solved:
    """What a calibrated method made of a weight. notes: everything degraded or unusual."""

    weight: Weight
    notes: tuple[str, ...] = ()


Solver = Callable[[Problem[Any]], Solved]
"""A calibrated method. It leaves the problem's weight alone."""
