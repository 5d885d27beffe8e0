"""What a producer makes, unquantized, in one pass of Triton: for linears that quantize on their own, as those for few
tokens do. The numbers are those that `produce` quantizes, to the bit."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launcher, empty, start, stream_of
from .elements import inverse_root, load_values, store_pair
from .inputs import readable
from .kernel import in_pairs, norm_of, reading
from .reference import Producer


@triton.jit
def values_kernel(
    x_ptr,  # [tokens, COLUMNS], rows X_STRIDE apart
    other_ptr,  # likewise, rows OTHER_STRIDE apart; not read for the element same
    weight_ptr,  # [COLUMNS]; not read without NORM
    sum_ptr,  # [tokens, COLUMNS]; written for the element sum
    out_ptr,  # [tokens, COLUMNS]
    COLUMNS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    OTHER_STRIDE: tl.constexpr,
    ELEMENT: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    PAIRS: tl.constexpr,
    NATIVE: tl.constexpr,
    READ: tl.constexpr,  # pairs read at a time
):
    token = tl.program_id(0).to(tl.int64)
    x_ptr += token * X_STRIDE
    other_ptr += token * OTHER_STRIDE
    inverse = 1.0
    if NORM:
        sum_ptr += token * COLUMNS
        inverse = inverse_root(x_ptr, other_ptr, sum_ptr, EPS, COLUMNS, ELEMENT, PAIRS, NATIVE, READ)
    for first in tl.static_range(0, (COLUMNS + 1) // 2, READ):
        pair = first + tl.arange(0, READ)
        low, high = load_values(x_ptr, other_ptr, weight_ptr, inverse, pair, COLUMNS, ELEMENT, NORM, PAIRS, NATIVE)
        store_pair(out_ptr + token * COLUMNS, pair, low, high, COLUMNS, PAIRS)


LAUNCHER = Launcher(values_kernel)


class Values:
    """`values` for one producer, number of columns, dtype and strides of the inputs: compiled, ready to start."""

    def __init__(
        self, producer: Producer, columns: int, kind: torch.dtype, strides: tuple[int, int], device: torch.device
    ) -> None:
        read, warps = reading(columns)
        self._constants = (columns, *strides, *norm_of(producer), in_pairs(columns, kind), True, read)
        x = torch.empty(16, dtype=kind, device=device)
        self._kernel = LAUNCHER.compiled((device, kind, self._constants), (x,) * 5, self._constants, warps)

    def start(self, addresses: tuple[int, ...], tokens: int, stream: int) -> None:
        """addresses: of x, other, weight, sum, out; multiples of 16, anything for what is not used."""
        start(self._kernel, (tokens, 1), stream, *addresses, *self._constants)


values_for = cache(Values)


def values(producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x, other [M, K], weight [K] as `produce` takes them -> the values [M, K] in their dtype, and the sum."""
    (tokens, columns), (used, total) = x.shape, readable(producer, x, other, weight)
    out = empty(tokens, columns, x.dtype)
    if tokens:
        op = values_for(producer, columns, x.dtype, (used[0].stride(0), used[1].stride(0)), x.device)
        op.start(tuple(tensor.data_ptr() for tensor in (*used, out)), tokens, stream_of(x.device))
    return out, total
