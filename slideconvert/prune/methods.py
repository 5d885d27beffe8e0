"""Every method by its word: what it does, what it needs to know, and how it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from ..core.patterns import BlockPattern, Pattern
from ..core.schemes import Scheme
from ..core.select import apply_mask
from ..errors import pick
from .gqsa import saliency
from .magnitude import magnitude
from .obs import Solved, gptq, hessian, obs
from .statistics import Statistics
from .wanda import wanda


class Solver(Protocol):
    """weight [out, in] float32 -> Solved. latent [out, in] float32: what a ternary weight was rounded from, None for
    others and where it is not known."""

    def __call__(
        self,
        weight: Tensor,
        statistics: Statistics,
        pattern: Pattern,
        scheme: Scheme,
        latent: Tensor | None = None,
    ) -> Solved: ...


@dataclass(frozen=True)
class Method:
    """One method of choosing (and moving) weights.

    prunes: whether it takes weights away; without, the pattern must be there already.
    mask: of a method that needs no data: (weight [out, in], pattern) -> keep mask.
    solve: of a calibrated one.
    asymmetric: whether it wants to know how far the inputs have moved from the dense model's.
    diagonal: whether the diagonal of the Gram matrix is all that it looks at.
    grouped: whether it takes whole groups (a GroupPattern) instead of weights (2:L).
    """

    name: str
    prunes: bool
    mask: Callable[[Tensor, BlockPattern], Tensor] | None = None
    solve: Solver | None = None
    asymmetric: bool = False
    diagonal: bool = False
    grouped: bool = False

    @property
    def calibrated(self) -> bool:
        return self.solve is not None


def _wanda(
    weight: Tensor, statistics: Statistics, pattern: Pattern, scheme: Scheme, latent: Tensor | None = None
) -> Solved:
    """Wanda's mask, survivors rounded to nearest. Ternary weights are weighed by their latent."""
    assert isinstance(pattern, BlockPattern)
    pruned = apply_mask(weight, wanda(weight if latent is None else latent, statistics.whole.norms, pattern))
    return Solved(scheme.store(pruned))


METHODS = {
    method.name: method
    for method in (
        Method("magnitude", True, mask=magnitude),
        Method("wanda", True, solve=_wanda, diagonal=True),
        Method("hessian", True, solve=hessian),
        Method("obs", True, solve=obs, asymmetric=True),
        Method("alps", True, solve=partial(obs, admm=True), asymmetric=True),
        Method("gqsa", True, solve=partial(obs, admm=True), asymmetric=True, grouped=True),
        Method("saliency", True, solve=saliency, grouped=True),
        Method("rtn", False),
        Method("gptq", False, solve=gptq),
    )
}


def parse_method(name: str) -> str:
    """Check a method's word. InputError with the nearest one if it is unknown."""
    return pick(name, METHODS, "method")
