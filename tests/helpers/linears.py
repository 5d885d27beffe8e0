"""Specs of every kind of quantized linear, comparing their tensors, and how programs load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from slideconvert.kernels.group_spec import GroupSpec
from slideconvert.kernels.slide_spec import CODES, SlideSpec
from slideconvert.kernels.spec import LinearSpec

SPECS: list[LinearSpec] = [
    *(SlideSpec(6, 43, length, dtype, layout) for length in (8, None) for dtype in CODES.values() for layout in
      ("slide", "dense")),
    *(GroupSpec(9, 48, 16, bits, 12, symmetric, activations, layout) for bits, activations in ((4, 16), (4, 8), (8, 16))
      for symmetric in (False, True) for layout in ("gqs", "dense")),
]  # fmt: skip


def same(found: Tensor, expected: Tensor) -> bool:
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(
        found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    )


def all_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default: vLLM sets it to that of the model while it loads one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
