"""The registry of methods: what each needs, which patterns it prunes to, and the function that carries it out."""

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
from .solvers import alps, gptq, gqsa, hessian, sweep_refit
from .wanda import wanda


@dataclass(frozen=True)
class Method:
    """One method that chooses, and possibly updates, the weights of a linear.

    mask: (weight [out, in], pattern) -> keep mask [out, in] bool; None for a calibrated method and for rtn.
    solve: Problem -> Solved; None for a method without calibration.
    uses_dense_inputs: whether it compensates for inputs that differ from the dense model's (`Statistics.cross`).
    diagonal: whether it uses only the diagonal of the Gram matrix.
    family: the class of the patterns that it prunes to.
    """

    name: str
    mask: Callable[[Tensor, Pattern], Tensor] | None = None
    solve: Solver | None = None
    uses_dense_inputs: bool = False
    diagonal: bool = False
    family: type[Pattern] = BlockPattern

    @property
    def prunes(self) -> bool:
        """Whether it prunes weights; otherwise they must follow the pattern already."""
        return self.name in choices.PRUNING

    @property
    def calibrated(self) -> bool:
        """Whether it needs the inputs of the linear."""
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
        Method(choices.SWEEP_REFIT, solve=sweep_refit, uses_dense_inputs=True),
        Method(choices.ALPS, solve=alps, uses_dense_inputs=True),
        Method(choices.GQSA, solve=gqsa, uses_dense_inputs=True, family=GroupPattern),
        Method(choices.SALIENCY, solve=saliency, family=GroupPattern),
        Method(choices.RTN),
        Method(choices.GPTQ, solve=gptq),
    )
}


def parse_method(name: str) -> str:
    """The name of a method, checked. InputError with the nearest name if it is unknown."""
    return pick(name, METHODS, "method")
