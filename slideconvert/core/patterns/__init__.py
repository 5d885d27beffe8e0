"""Sparsity patterns: which weights of a linear must be zero, and every number that follows from that."""

from __future__ import annotations

from .base import Pattern
from .blocks import ALL, LENGTHS, SLID_MULTIPLE, WINDOW, ZEROS, BlockPattern
from .groups import GroupPattern

FAMILIES: tuple[type[Pattern], ...] = (GroupPattern, BlockPattern)
"""Every family of patterns; the last one parses text that no other claims, and its errors list its patterns."""


def parse_pattern(text: str) -> Pattern:
    """'2:8' or '1x16:50%' -> a pattern of its family. InputError (PatternError of group patterns) for other text."""
    return next(family for family in FAMILIES if family.claims(text)).parse(text)


__all__ = [
    "ALL",
    "FAMILIES",
    "LENGTHS",
    "SLID_MULTIPLE",
    "WINDOW",
    "ZEROS",
    "BlockPattern",
    "GroupPattern",
    "Pattern",
    "parse_pattern",
]
