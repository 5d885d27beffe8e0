"""Producers of quantized activations in Triton: what comes before a linear, quantized and lifted in one pass.

One program a token. Its inputs come from memory once, and from the cache whenever they are read again, as they are
after the mean square of a norm. Values stay in registers between the search for the largest magnitude and the codes
(held.py), or are computed again (recomputed.py) where a thread cannot hold what its windows are made of. Codes are
written in words of four, as lift_quant writes them: unlifted codes are those of windows that do not overlap, which are
the windows of 2:4.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..driver import Kernel, Launch
from ..launch import Launcher, empty, stream_of
from ..operand import Operand
from ..quantize.kernel import factor_of, scale_of, steps
from ..quantize.reference import QMAX
from ..windows import group_of
from .elements import inverse_root
from .held import MOST_HELD, hold_values, store_held
from .inputs import readable
from .recomputed import largest_value, store_bytes, store_words
from .reference import Producer

WHOLE = 1
"""Windows of a block if no two overlap."""


@triton.jit(do_not_specialize=["tokens"])
def produce_kernel(
    x_ptr,  # [tokens, COLUMNS], rows X_STRIDE apart
    other_ptr,  # likewise, rows OTHER_STRIDE apart; not read for the element same
    weight_ptr,  # [COLUMNS]; not read without NORM
    sum_ptr,  # [tokens, COLUMNS]; written for the element sum
    codes_ptr,  # [programs, WIDTH] of one byte each
    scale_ptr,  # [tokens] float32
    tokens,
    COLUMNS: tl.constexpr,
    X_STRIDE: tl.constexpr,
    OTHER_STRIDE: tl.constexpr,
    ELEMENT: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOWS: tl.constexpr,  # of a block; 0 for 2:inf
    BLOCKS: tl.constexpr,  # of which all first windows lie together, then all second ones
    WORDS: tl.constexpr,  # whether WIDTH is a multiple of four
    QMAX: tl.constexpr,
    FP8: tl.constexpr,
    STEPS: tl.constexpr,
    PAIRS: tl.constexpr,
    NATIVE: tl.constexpr,  # with the GPU's own instructions; plainly where the kernel is interpreted
    HOLD: tl.constexpr,  # blocks held at a time; 0 to read and compute values again for the codes
    READ: tl.constexpr,  # pairs read at a time
    WRITE: tl.constexpr,  # words written at a time
):
    token = tl.program_id(0).to(tl.int64)
    codes_ptr += token * WIDTH
    words_ptr = codes_ptr.to(tl.pointer_type(tl.int32))
    if token >= tokens:
        for first in range(0, WIDTH, WRITE):
            column = first + tl.arange(0, WRITE)
            tl.store(codes_ptr + column, tl.zeros([WRITE], tl.int8), mask=column < WIDTH)
    else:
        x_ptr += token * X_STRIDE
        other_ptr += token * OTHER_STRIDE
        inverse = 1.0
        if NORM:
            sum_ptr += token * COLUMNS
            inverse = inverse_root(x_ptr, other_ptr, sum_ptr, EPS, COLUMNS, ELEMENT, PAIRS, NATIVE, READ)
        if HOLD > 0:
            held, largest = hold_values(
                x_ptr, other_ptr, weight_ptr, inverse, COLUMNS, ELEMENT, NORM, WIDTH // 4 // WINDOWS, WINDOWS, PAIRS,
                NATIVE, HOLD,
            )  # fmt: skip
        else:
            largest = largest_value(
                x_ptr, other_ptr, weight_ptr, inverse, COLUMNS, ELEMENT, NORM, PAIRS, NATIVE, READ
            )  # fmt: skip
        scale = scale_of(largest, QMAX)
        tl.store(scale_ptr + token, scale)
        factor = factor_of(scale)
        scale = scale * factor
        reciprocal = tl.div_rn(1.0, scale)
        if HOLD > 0:
            store_held(
                held, words_ptr, factor, scale, reciprocal, WIDTH // 4 // WINDOWS, WINDOWS, BLOCKS, FP8, STEPS, NATIVE,
                HOLD,
            )  # fmt: skip
        elif WORDS:
            store_words(
                x_ptr, other_ptr, weight_ptr, words_ptr, inverse, factor, scale, reciprocal, COLUMNS, ELEMENT, NORM,
                WIDTH // 4, WINDOWS, BLOCKS, FP8, STEPS, PAIRS, NATIVE, WRITE,
            )  # fmt: skip
        else:
            store_bytes(
                x_ptr, other_ptr, weight_ptr, codes_ptr, inverse, factor, scale, reciprocal, COLUMNS, ELEMENT, NORM,
                FP8, STEPS, PAIRS, NATIVE, READ,
            )  # fmt: skip


WRITE = 512
"""Words written at a time by a program, as lift_quant does."""
LAUNCHER = Launcher(produce_kernel)


def reading(columns: int) -> tuple[int, int]:
    """Pairs read at a time, and warps: the order in which squares are added, so the same for whatever is made."""
    warps = 4 if columns <= 4096 else 8 if columns <= 8192 else 16
    return min(128 * warps, triton.next_power_of_2((columns + 1) // 2)), warps


def windows_of(operand: Operand) -> int:
    """Windows of a block; 0 for 2:inf."""
    if not operand.lifted:
        return WHOLE
    return group_of(operand.length)[1] if operand.length else 0


def holding(operand: Operand) -> int:
    """Blocks whose values a program holds at a time, one to a thread; 0 if they would be too many, or if their windows
    would be written apart from each other."""
    windows, threads = windows_of(operand), 32 * reading(operand.columns)[1]
    together = operand.blocks > 1 or windows <= 2
    if operand.width % 4 or not windows or not together:
        return 0
    count = operand.width // 4 // windows
    return threads if -(-count // threads) * 2 * (windows + 1) <= MOST_HELD else 0


def constants(producer: Producer, operand: Operand, kind: torch.dtype, strides: tuple[int, int]) -> tuple[Any, ...]:
    """The constants of a kernel for inputs of dtype `kind`, whose rows lie `strides` numbers apart."""
    columns, windows, fp8 = operand.columns, windows_of(operand), operand.dtype == torch.float8_e4m3fn
    return (
        columns, *strides, *norm_of(producer), operand.width, windows, operand.blocks, operand.width % 4 == 0,
        QMAX[operand.dtype], fp8, steps(kind), in_pairs(columns, kind), True, holding(operand), reading(columns)[0],
        WRITE,
    )  # fmt: skip


def norm_of(producer: Producer) -> tuple[str, bool, float]:
    """ELEMENT, NORM and EPS."""
    return producer.element, producer.eps is not None, producer.eps or 0.0


def in_pairs(columns: int, kind: torch.dtype) -> bool:
    """Whether two columns of so many, of dtype `kind`, are read at once."""
    return kind.itemsize == 2 and columns % 2 == 0


class Arguments(ctypes.Structure):
    """Parameters of the kernel that are no constants, in its order."""

    _fields_ = (
        *((name, c_uint64) for name in ("x", "other", "weight", "total", "codes", "scale")),
        ("tokens", c_int),
    )


class Produce:
    """`produce` for one producer, operand, dtype and strides of the inputs: compiled, ready to start on addresses."""

    def __init__(
        self, producer: Producer, operand: Operand, kind: torch.dtype, strides: tuple[int, int], device: torch.device
    ) -> None:
        warps = reading(operand.columns)[1]
        given = constants(producer, operand, kind, strides)
        x = torch.empty(16, dtype=kind, device=device)
        codes = torch.empty(16, dtype=torch.int8, device=device)
        scale = torch.empty(4, dtype=torch.float32, device=device)
        compiled = LAUNCHER.compiled((device, kind, warps, given), (x, x, x, x, codes, scale, 1), given, warps)
        self._kernel = Kernel("produce_kernel", c_void_p(compiled.function), compiled.metadata.shared)
        self._threads = 32 * warps
        self._idle: list[tuple[Arguments, Launch]] = []

    def start(self, addresses: tuple[int, ...], tokens: int, rows: int, stream: int) -> None:
        """addresses: of x, other, weight, sum, codes [rows, width], scale; multiples of 16, anything for what is not
        used."""
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            argument = Arguments()
            held = argument, Launch(self._kernel, 1, self._threads, argument, apart=True)
        argument, launch = held
        argument.x, argument.other, argument.weight, argument.total, argument.codes, argument.scale = addresses
        argument.tokens = tokens
        launch.resize(rows)
        launch.start(stream)
        self._idle.append(held)


produce_for = cache(Produce)


class Producing:
    """`produce` for one producer and operand on one device, without a search for what it starts."""

    def __init__(self, producer: Producer, operand: Operand, device: torch.device) -> None:
        self.producer, self.operand, self.device = producer, operand, device
        self._width = operand.width
        self._compiled: dict[tuple[torch.dtype, int, int], Produce] = {}

    def __call__(
        self, x: Tensor, other: Tensor | None, weight: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`produce`, with the device as the current one."""
        tokens, (used, total) = x.shape[0], readable(self.producer, x, other, weight)
        codes = empty(rows, self._width, self.operand.dtype)
        scale = empty(tokens + self.operand.spare, 1, torch.float32)[:tokens]
        if rows:
            key = (x.dtype, used[0].stride(0), used[1].stride(0))
            op = self._compiled.get(key)
            if op is None:
                op = self._compiled[key] = produce_for(self.producer, self.operand, key[0], key[1:], self.device)
            x, second, third, fourth = used
            addresses = (x.data_ptr(), second.data_ptr(), third.data_ptr(), fourth.data_ptr())
            op.start((*addresses, codes.data_ptr(), scale.data_ptr()), tokens, rows, stream_of(self.device))
        return codes, scale, total


producing_for = cache(Producing)


def produce(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, operand: Operand, rows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, other [M, K], weight [K] float16, bfloat16 or float32, finite, on a CUDA device, the current one -> codes
    [rows, width] of the operand, scale [M, 1] float32, and the sum [M, K] for the element sum.

    The bytes of the reference, but where the float32 results of a mean, an exponential or a root, which differ in
    their last bits, round to another number of the activations' dtype. Rows may lie apart: x and other may be halves of
    one tensor. rows: at least M; rows beyond it are padding, code 0.
    """
    return producing_for(producer, operand, x.device)(x, other, weight, rows)
