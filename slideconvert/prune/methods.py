"""Every method by its name: what it does, which patterns it prunes to, and how it is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..core import choices
from ..core.patterns import BlockPattern, GroupPattern, Pattern
from ..errors import pick
from .gqsa import saliency
from .magnitude import magnitude
from .problem import Solver
from .solvers import alps, gptq, gqsa, hessian, obs
from .wanda import wanda


@dataclass(frozen=True)
class Method:
    """One method of choosing (and moving) weights.

    mask: for a method without calibration: (weight [out, in], pattern) -> keep mask [out, in] bool.
    solve: for a calibrated method.
    asymmetric: whether it uses the difference between the inputs and those of the dense model.
    diagonal: whether it uses only the diagonal of the Gram matrix.
    family: the patterns that it prunes to.
    """

    name: str
    mask: Callable[[Tensor, Pattern], Tensor] | None = None
    solve: Solver | None = None
    asymmetric: bool = False
    diagonal: bool = False
    family: type[Pattern] = BlockPattern

    @property
    def prunes(self) -> bool:
        """Whether it prunes weights; otherwise they must have the pattern already."""
        return self.name in choices.PRUNING

    @property
    def calibrated(self) -> bool:
        return self.solve is not None

    @property
    def whole_groups(self) -> bool:
        """Whether it prunes whole groups instead of weights in blocks."""
        return self.family.whole_groups


METHODS = {
    method.name: method
    for method in (
        Method(choices.MAGNITUDE, mask=magnitude),
        Method(choices.WANDA, solve=wanda, diagonal=True),
        Method(choices.HESSIAN, solve=hessian),
        Method(choices.OBS, solve=obs, asymmetric=True),
        Method(choices.ALPS, solve=alps, asymmetric=True),
        Method(choices.GQSA, solve=gqsa, asymmetric=True, family=GroupPattern),
        Method(choices.SALIENCY, solve=saliency, family=GroupPattern),
        Method(choices.RTN),
        Method(choices.GPTQ, solve=gptq),
    )
}


def parse_method(name: str) -> str:
    """Check a method's name. InputError with the nearest one if it is unknown."""
    return pick(name, METHODS, "method")
