"""Matrices that bite: every mask of a pattern, distinct values, ties, signed zeros; and how hypothesis draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.core.patterns import LENGTHS
from slideconvert.core.schemes import SCHEMES

LENGTH = st.sampled_from(LENGTHS)
BYTE_DTYPES = [torch.int8, torch.float8_e4m3fn, torch.bfloat16]
"""What slides and packs: weights of one and two bytes."""
UNGROUPED = {name: scheme for name, scheme in SCHEMES.items() if not scheme.grouped}
"""The schemes whose scale, if any, belongs to a whole row. The others have tests of their own: test_groups_*.py."""


def examples(count: int) -> settings:
    """The same `count` examples in every run; nothing is written beside the tests."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def raw(tensor: Tensor) -> NDArray[Any]:
    """The bits of a tensor as integers of its item size: two that agree hold the same bytes."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(width).numpy()


def masks(length: int, *, legal: bool) -> NDArray[np.bool_]:
    """Every mask of one group, [masks, length]: those with at least two False if legal, else all others."""
    every = (np.arange(2**length)[:, None] >> np.arange(length) & 1).astype(np.bool_)
    chosen: NDArray[np.bool_] = every[((~every).sum(axis=1) >= 2) == legal]
    return chosen


def codes_on(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Non-zero codes where the mask is True, of both signs, all different in 16 neighbouring columns."""
    row, column = np.indices(mask.shape)
    sizes = (5 * row + 7 * column) % 127 + 1
    return np.where(mask, np.where((row + column) % 2, -sizes, sizes), 0).astype(np.int8)


def as_dtype(codes: NDArray[np.int8], dtype: torch.dtype) -> Tensor:
    """The codes as bytes of `dtype` whose zeros are zero bytes (an int8 -1 is FP8's NaN: bytes are only moved)."""
    tensor = torch.from_numpy(codes)
    return tensor.view(dtype) if dtype.itemsize == 1 else tensor.to(torch.int16).mul_(257).view(dtype)


@st.composite
def legal_codes(draw: st.DrawFn, length: int | None, most_rows: int = 5) -> NDArray[np.int8]:
    """Codes [rows, columns] that follow 2:length, ragged rows and empty groups among them; anything for None."""
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, 3 * (length or 8) + 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((rows, columns)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    if length:
        for start in range(0, columns, length):
            present = min(length, columns - start)
            for row in range(rows):
                gone = rng.permutation(length)[:2]
                mask[row, start + gone[gone < present]] = False
    return codes_on(mask)
