"""Pruning and quantization methods, functions from tensors to tensors: a keep mask, or a solved Problem."""

from __future__ import annotations

from .magnitude import magnitude
from .methods import METHODS, Method, parse_method
from .problem import Problem, Solved

__all__ = ["METHODS", "Method", "Problem", "Solved", "magnitude", "parse_method"]
