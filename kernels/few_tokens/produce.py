"""The codes that the product of few tokens reads, in one launch: of activations, or of the inputs of a producer.

The numbers are those of producers/kernel.py, but for the order in which the squares of a norm are added.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_uint64
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..launch import stream_of
from ..operand import PIECE, WORDS, Operand
from ..producers.inputs import readable
from ..producers.reference import ELEMENTS, SAME, Producer
from ..windows import group_of
from .division import ceil_div
from .prepared import Order

SOURCE = Path(__file__).with_name("quantize.cu")
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, None: 3}
CLUSTERS_SINCE = OVERLAPPING_SINCE = (9, 0)
"""Compute capabilities that have clusters, and launches that overlap."""
LONG, SHARERS = 256, 8
"""Shares of a token that one block has at most, and the blocks that have a longer token. For few tokens, one block is
faster than several for up to so many: those that the product needs next have more multiprocessors to begin on."""
CROWD, CROWD_SHARERS = 64, 4
"""Where so many tokens have a block each, several begin on the multiprocessors that are free first, and those whose
threads have 32 columns or more take longer than more and smaller ones."""
MOST_QUANTIZERS = 512
"""Threads of a block, at most."""
PLAIN = Producer(SAME)


class Arguments(ctypes.Structure):
    """The struct of quantize.cu."""

    _fields_ = (
        *((name, c_uint64) for name in ("x", "other", "norm", "total", "codes", "scale")),
        *((name, c_int) for name in ("x_stride", "other_stride", "columns", "pieces")),
        ("eps", c_float),
        ("padding", c_int),
    )


@dataclass(frozen=True)
class Blocks:
    """Those of a token. cluster: how many; threads: of each; held: shares of columns that a thread holds."""

    cluster: int
    threads: int
    held: int

    @classmethod
    def of(cls, operand: Operand, *, clusters: bool) -> Blocks:
        """clusters: whether the GPU has them."""
        pieces = group_of(operand.length)[1] if operand.lifted else WORDS // 2
        shares = ceil_div(operand.pieces, pieces)
        crowded = operand.interleaved >= CROWD and operand.columns >= 32 * shares
        cluster = 1 if not clusters else SHARERS if shares > LONG else CROWD_SHARERS if crowded else 1
        held = ceil_div(shares, cluster * MOST_QUANTIZERS)
        return cls(cluster, 32 * ceil_div(shares, 32 * held * cluster), held)


def constants(producer: Producer, operand: Operand, kind: torch.dtype, blocks: Blocks) -> dict[str, int]:
    """What quantize.cu is compiled with for inputs of dtype `kind`."""
    stored = Order.of(operand.length).constants if operand.lifted else {"METADATA": 0}
    return {
        "SPARSE": int(operand.lifted), "LENGTH": (operand.length or 2) if operand.lifted else 0,
        "FLOAT": int(operand.dtype != torch.int8), "TILES": operand.interleaved // 8, "X": KINDS[kind],
        "CLUSTER": blocks.cluster, "QUANTIZERS": blocks.threads, "HELD": blocks.held,
        "ELEMENT": ELEMENTS.index(producer.element), "NORM": int(producer.eps is not None), **stored,
    }  # fmt: skip


class Quantize:
    """The launch for one producer, operand, and dtype of the inputs: compiled, ready to start."""

    def __init__(self, producer: Producer, operand: Operand, kind: torch.dtype, device: torch.device) -> None:
        capability = torch.cuda.get_device_capability(device)
        self._fixed = {"columns": operand.columns, "pieces": operand.pieces, "eps": producer.eps or 0.0}
        self._blocks = Blocks.of(operand, clusters=capability >= CLUSTERS_SINCE)
        module = Module(SOURCE, constants(producer, operand, kind, self._blocks), device)
        self._kernel, self._overlapping = module.kernel("quantize"), capability >= OVERLAPPING_SINCE
        self._idle: list[tuple[Arguments, Launch]] = []

    def start(self, addresses: dict[str, int], strides: tuple[int, int], tokens: int, stream: int) -> None:
        """addresses: of x, other, norm, total, codes and scale, multiples of 16; those that the producer has no use for
        may be missing. strides: numbers from one row of x, and of other, to the next."""
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            argument = Arguments(**self._fixed)
            held = argument, Launch(self._kernel, 1, self._blocks.threads, argument, overlapping=self._overlapping)
        argument, launch = held
        for name, address in addresses.items():
            setattr(argument, name, address)
        argument.x_stride, argument.other_stride = strides
        launch.resize(tokens * self._blocks.cluster)
        launch.start(stream)
        self._idle.append(held)


quantize_for = cache(Quantize)


def empty(operand: Operand, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes [pieces, interleaved * 16] and scale [M, 1] float32, to be filled."""
    codes = torch.empty(operand.pieces, operand.interleaved * PIECE, dtype=operand.dtype, device=device)
    return codes, torch.empty(tokens, 1, dtype=torch.float32, device=device)


def produce(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, operand: Operand
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, other [M, K], weight [K] as producers/kernel.py takes them, M at most operand.interleaved, K a multiple of 8
    -> codes [pieces, interleaved * 16], those of tokens beyond M of no meaning, scale [M, 1] float32, and the sum.

    The weight must not be written by the launch before this one. ValueError if there are more tokens.
    """
    tokens, (used, total) = x.shape[0], readable(producer, x, other, weight)
    if tokens > operand.interleaved:
        raise ValueError(f"{tokens} tokens, {operand.interleaved} are interleaved")
    codes, scale = empty(operand, tokens, x.device)
    if tokens:
        names = ("x", "other", "norm", "total", "codes", "scale")
        addresses = {name: made.data_ptr() for name, made in zip(names, (*used, codes, scale), strict=True)}
        op = quantize_for(producer, operand, x.dtype, x.device)
        op.start(addresses, (used[0].stride(0), used[1].stride(0)), tokens, stream_of(x.device))
    return codes, scale, total
