"""Blocks of L columns by their two zeros.

Of a block with at least two zeros, all columns but its first two zeros are kept, L - 2 of them. Let a of the kept
columns stand before the first zero, b >= a before the second. Kept column k is column k + [k >= a] + [k >= b] of the
block, and belongs to window k // 2 (windows.py), where its position is k % 2 + [k >= a] + [k >= b]: at most 3, and
greater than that of the one before it. So a and b determine the metadata of all windows.

    block  7 -3  5  0 -9  0  4  6     kept  7 -3 | 5 -9 | 4  6     a = 3, b = 4     positions 0 1 | 0 2 | 2 3
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..planes import from_planes, nonzero, row_blocks, to_planes


def positions(a: int, b: int, window: int) -> int:
    """The two positions of a window, as a nibble of metadata."""
    low, high = (k % 2 + (k >= a) + (k >= b) for k in (2 * window, 2 * window + 1))
    return low | high << 2


def compact(codes: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """codes int8 [N, K] -> kept int8 [N, blocks * (L - 2)]; a, b uint8 [N, blocks].

    ValueError if a block has fewer than two zeros.
    """
    rows, blocks = codes.shape[0], -(-codes.shape[1] // length)
    kept = torch.empty(rows, blocks * (length - 2), dtype=torch.int8, device=codes.device)
    first = torch.empty(rows, blocks, dtype=torch.uint8, device=codes.device)
    second = torch.empty_like(first)
    for some in row_blocks(codes):
        columns = to_planes(codes[some], length)
        none = torch.zeros_like(columns[0])
        one, two = none, none  # all ones once the first, the second zero was met
        a, b = none, none
        before = []  # by column: whether it stands before the first zero, and before the second
        for column in columns:
            zero = ~nonzero(column)
            two = two | one & zero
            one = one | zero
            a, b = a + (~one & 1), b + (~two & 1)
            before.append((~one, ~two))
        if int(two.amax()) == 0:
            row, block = (int(index) for index in (two == 0).nonzero()[0])
            raise ValueError(
                f"row {some.start + row}, columns {block * length} … {(block + 1) * length - 1} hold fewer than two "
                "zeros"
            )
        b = b - 1  # the first zero stands before the second
        out = []
        for k in range(length - 2):
            # Kept column k is column k if that stands before the first zero, k + 1 if that is before the second …
            left, middle = before[k][0], before[k + 1][1]
            out.append(columns[k] & left | columns[k + 1] & ~left & middle | columns[k + 2] & ~left & ~middle)
        kept[some] = from_planes(out)
        first[some], second[some] = a.view(torch.uint8), b.view(torch.uint8)
    return kept, first, second


def expand(kept: Tensor, first: Tensor, second: Tensor, length: int) -> Tensor:
    """The inverse: kept int8 [N, blocks * (L - 2)]; a, b uint8 [N, blocks] -> codes int8 [N, blocks * L]."""
    codes = torch.empty(kept.shape[0], first.shape[1] * length, dtype=torch.int8, device=kept.device)
    for some in row_blocks(codes):
        values, a, b = to_planes(kept[some], length - 2), first[some], second[some]
        out = []
        for column in range(length):
            found = torch.zeros_like(values[0])
            for k, belongs in (
                (column, column < a),
                (column - 1, (column > a) & (column <= b)),
                (column - 2, column > b + 1),
            ):
                if 0 <= k < length - 2:
                    found = found | values[k] & -belongs.to(torch.int8)
            out.append(found)
        codes[some] = from_planes(out)
    return codes
