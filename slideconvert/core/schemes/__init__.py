"""Number schemes: how a weight and its activations are stored and scaled.

The weight is code * scale in every scheme, and zero is code 0. Schemes are constants; the methods of their types
hold the differences between kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import pick
from .. import choices
from .base import Scheme, no_groups
from .channel import FP8, INT8, ChannelScheme
from .floats import FloatScheme
from .groups import GROUP, GROUP_SIZES, GroupScheme, fitting_sizes

BF16 = FloatScheme(choices.BF16, "bfloat16", 16)
W4A16 = GroupScheme(choices.W4A16, "int8", 4, activation_bits=16)
W4A8 = GroupScheme(choices.W4A8, "int8", 4)
W8A16 = GroupScheme(choices.W8A16, "int16", 8, activation_bits=16)

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (INT8, FP8, BF16, W4A16, W4A8, W8A16)}


def parse_scheme(name: str) -> Scheme:
    """'int8' -> Scheme. InputError with the nearest word for an unknown one."""
    return SCHEMES[pick(name, SCHEMES, "scheme")]


def read_scheme(name: str, described: Mapping[str, Any]) -> Scheme:
    """The scheme of a record, by its name and its other fields. InputError, KeyError or ValueError."""
    return parse_scheme(name).described(described)


__all__ = [
    "BF16",
    "FP8",
    "GROUP",
    "GROUP_SIZES",
    "INT8",
    "SCHEMES",
    "W4A8",
    "W4A16",
    "W8A16",
    "ChannelScheme",
    "FloatScheme",
    "GroupScheme",
    "Scheme",
    "fitting_sizes",
    "no_groups",
    "parse_scheme",
    "read_scheme",
]
