"""Pruning methods: each one a file, each one a function from tensors to tensors.

A method that needs no data takes (weight [out, in], pattern) and returns a keep mask [out, in]. Calibrated
methods will take the statistics of the layer's input as well, and may move the surviving weights.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import pick
from ..patterns import Pattern
from .magnitude import magnitude
from .select import keep_mask

__all__ = ["METHODS", "PRUNERS", "keep_mask", "magnitude", "parse_method"]

Method = Callable[[Tensor, Pattern], Tensor]

PRUNERS: dict[str, Method] = {"magnitude": magnitude}
"""Every method that prunes, by its word."""
METHODS = (*PRUNERS, "none")
"""The words a recipe may use; `none` leaves all weights as they are, which must follow the pattern already."""


def parse_method(name: str) -> str:
    """Check a method's word. InputError with the nearest one if it is unknown."""
    return pick(name, METHODS, "method")
