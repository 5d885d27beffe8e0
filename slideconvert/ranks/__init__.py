"""One job on several ranks: processes on the GPUs or cores of one or several hosts, started by torchrun or accelerate.

Rank 0 writes files and shows progress; sequences, rows and weight files are divided. With a single rank every function
here returns its argument at once. A failure of one rank ends all of them with its error (group.py).
"""

from __future__ import annotations

from .exchange import agreed, given, own_rows, place, share, sums, total, whole
from .group import alone, count, end_all, first, first_ahead, gate, heed, joined, number

__all__ = [
    "agreed",
    "alone",
    "count",
    "end_all",
    "first",
    "first_ahead",
    "gate",
    "given",
    "heed",
    "joined",
    "number",
    "own_rows",
    "place",
    "share",
    "sums",
    "total",
    "whole",
]
