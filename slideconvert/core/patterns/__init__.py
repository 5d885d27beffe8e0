"""Sparsity patterns: which weights of a linear may be zero, and every number that follows from that."""

from __future__ import annotations

from .base import Pattern
from .blocks import ALL, LENGTHS, SLID_MULTIPLE, WINDOW, ZEROS, BlockPattern
from .groups import GroupPattern

FAMILIES: tuple[type[Pattern], ...] = (GroupPattern, BlockPattern)
"""Every family of patterns; the last one takes all text that no other claims, and names its patterns in errors."""


def parse_pattern(text: str) -> Pattern:
    """'2:8' or '1x16:50%' -> a pattern of its family. InputError for anything else."""
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
