"""Producers for the product of few tokens, in CUDA: one launch makes the codes that it reads of a norm's or a gate's
inputs. The numbers are those of kernel.py, but for the order in which the squares of a norm are added."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_uint64
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..few_tokens.kernel import KINDS, OVERLAPPING_SINCE, QUANTIZERS, Device, shares
from ..few_tokens.prepared import Order
from ..launch import stream_of
from ..operand import Operand
from .kernel import readable
from .reference import ELEMENTS, Producer

SOURCE = Path(__file__).with_name("interleaved.cu")


class Arguments(ctypes.Structure):
    """The struct of interleaved.cu."""

    _fields_ = (
        *((name, c_uint64) for name in ("x", "other", "norm", "total", "codes", "scale")),
        *((name, c_int) for name in ("x_stride", "other_stride", "columns", "pieces")),
        ("eps", c_float),
        ("padding", c_int),
    )


def constants(producer: Producer, operand: Operand, kind: torch.dtype) -> dict[str, int]:
    """What interleaved.cu is compiled with for inputs of dtype `kind`."""
    stored = Order.of(operand.length).constants if operand.lifted else {"METADATA": 0}
    return {
        "SPARSE": int(operand.lifted), "LENGTH": (operand.length or 2) if operand.lifted else 0,
        "FLOAT": int(operand.dtype != torch.int8), "TILES": operand.interleaved // 8, "X": KINDS[kind],
        "ELEMENT": ELEMENTS.index(producer.element), "NORM": int(producer.eps is not None), **stored,
    }  # fmt: skip


class Interleaved:
    """`produce` for one producer, operand, and dtype of the inputs: compiled, ready to start."""

    def __init__(self, producer: Producer, operand: Operand, kind: torch.dtype, device: torch.device) -> None:
        self._fixed = {"columns": operand.columns, "pieces": operand.pieces, "eps": producer.eps or 0.0}
        module = Module(SOURCE, constants(producer, operand, kind), device)
        self._kernel, self._gpu = module.kernel("produce"), Device.of(device)
        self._idle: dict[int, list[tuple[Arguments, Launch]]] = {}

    def _made(self, tokens: int) -> tuple[Arguments, Launch]:
        argument, overlapping = Arguments(**self._fixed), self._gpu.capability >= OVERLAPPING_SINCE
        grid = (tokens, shares(tokens, self._gpu.processors))
        return argument, Launch(self._kernel, grid, QUANTIZERS, argument, overlapping=overlapping)

    def start(self, addresses: dict[str, int], strides: tuple[int, int], tokens: int, stream: int) -> None:
        """addresses: of x, other, norm, total, codes and scale, multiples of 16, anything for what is not used.
        strides: numbers from one row of x, and of other, to the next."""
        idle = self._idle.setdefault(tokens, [])
        try:
            held = idle.pop()  # another thread finds another one
        except IndexError:
            held = self._made(tokens)
        argument, launch = held
        for name, address in addresses.items():
            setattr(argument, name, address)
        argument.x_stride, argument.other_stride = strides
        launch.start(stream)
        idle.append(held)


interleaved_for = cache(Interleaved)


def produce(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, operand: Operand
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, other [M, K], weight [K] as kernel.py's `produce` takes them, M at most operand.interleaved -> codes
    [pieces, interleaved * 16], those of tokens beyond M of no meaning, scale [M, 1] float32, and the sum.

    ValueError if there are more tokens.
    """
    tokens, (used, total) = x.shape[0], readable(producer, x, other, weight)
    if tokens > operand.interleaved:
        raise ValueError(f"{tokens} tokens, {operand.interleaved} are interleaved")
    codes = torch.empty(operand.pieces, operand.interleaved * 16, dtype=operand.dtype, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if tokens:
        names = ("x", "other", "norm", "total", "codes", "scale")
        addresses = {name: made.data_ptr() for name, made in zip(names, (*used, codes, scale), strict=True)}
        op = interleaved_for(producer, operand, x.dtype, x.device)
        op.start(addresses, (used[0].stride(0), used[1].stride(0)), tokens, stream_of(x.device))
    return codes, scale, total
