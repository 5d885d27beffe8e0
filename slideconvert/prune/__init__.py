"""Pruning and quantization methods: each one a file, each one a function from tensors to tensors.

A method that needs no data gives a keep mask; a calibrated one takes the statistics of the layer's input as well,
moves the surviving weights and rounds them. methods.py knows them all by their words.
"""

from __future__ import annotations

from .magnitude import magnitude
from .methods import METHODS, Method, parse_method

__all__ = ["METHODS", "Method", "magnitude", "parse_method"]
