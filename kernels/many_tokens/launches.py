"""The compiled kernels of a form of the product of many tokens, ready to start."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_uint64
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..few_tokens.division import ROWS
from ..few_tokens.exchange import address, exchanges
from ..launch import empty, stream_of
from ..tensor_map import TensorMap, bytes_map
from .tiles import Form, Tiling, Wgmma

FOLDER = Path(__file__).parent
MOST_MAPS = 64
"""Descriptions of codes that a form remembers: torch's allocator gives the same memory again and again."""

Source = tuple[str, tuple[tuple[str, int], ...]]
"""A file, and the constants that it is compiled with."""


class Arguments(ctypes.Structure):
    """The struct of both sources, up to a multiple of 64 bytes."""

    _fields_ = (
        ("map", TensorMap),
        *((name, c_uint64) for name in ("weight", "codes", "scale", "weight_scale", "bias", "out", "x")),
        *((name, c_uint64) for name in ("parts", "arrivals")),
        *((name, c_int) for name in ("rows", "columns", "tokens", "units", "row_tiles", "token_tiles", "pieces")),
        ("halved", c_int),
        ("padding", c_int * 6),
    )


@dataclass(frozen=True)
class Shape:
    """Of a product, on a device. rows, columns: of the weight, N and K. units: of the weight's columns. pieces: of 16
    codes, of a token. overlapping: whether the device begins a kernel while the one before it still runs."""

    rows: int
    columns: int
    units: int
    pieces: int
    device: torch.device
    overlapping: bool


class Launches:
    """The kernels of a form for activations and biases of one kind.

    quantize, product: sources. quantizers: threads that quantize a token. shared_bytes: of a block of the product.
    """

    def __init__(
        self, shape: Shape, form: Form, quantize: Source, quantizers: int, product: Source, shared_bytes: int
    ) -> None:
        self.shape, self.form, self._quantizers = shape, form, quantizers
        # Tokens of a copy by description; 0 where threads copy.
        self._box = form.tokens // form.sharers if isinstance(form, Wgmma) else 0
        self._quantize = module_of(*quantize, shape.device).kernel("quantize")
        self._product = module_of(*product, shape.device).kernel("product", shared_bytes)
        self._idle: list[tuple[Arguments, Launch, Launch]] = []
        self._maps: dict[tuple[int, int], TensorMap] = {}

    def _made(self) -> tuple[Arguments, Launch, Launch]:
        shape, overlapping = self.shape, self.shape.overlapping
        argument = Arguments(rows=shape.rows, columns=shape.columns, units=shape.units, pieces=shape.pieces)
        quantize = Launch(self._quantize, 1, self._quantizers, argument, overlapping=overlapping)
        return argument, quantize, Launch(self._product, 1, self.form.threads, argument, overlapping=overlapping)

    def _map(self, codes: int, tokens: int) -> TensorMap:
        """The description of the codes, for forms that copy by it."""
        found = self._maps.get((codes, tokens))
        if found is None:
            if len(self._maps) >= MOST_MAPS:
                self._maps.clear()
            found = bytes_map(codes, tokens, self.shape.pieces * 16, self._box)
            self._maps[codes, tokens] = found
        return found

    def start(
        self,
        tiling: Tiling,
        x: Tensor | None,
        quantized: tuple[Tensor, Tensor],
        prepared: Sequence[Tensor],
        bias: Tensor | None,
        out: Tensor,
    ) -> None:
        """x [M, K] contiguous at a multiple of 16, of which codes and their scales are made, as quantized; None: they
        are there. out [M, N], M at least 1, divided as `tiling` says."""
        tokens, stream = out.shape[0], stream_of(self.shape.device)
        (codes, token_scale), (weight, scale) = quantized, prepared
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            held = self._made()
        argument, quantize, product = held
        argument.codes = place = codes.data_ptr()
        if self._box:
            argument.map = self._map(place, tokens)
        argument.weight, argument.weight_scale = weight.data_ptr(), scale.data_ptr()
        argument.scale, argument.out = token_scale.data_ptr(), out.data_ptr()
        argument.bias = 0 if bias is None else bias.data_ptr()
        argument.tokens, argument.row_tiles, argument.token_tiles = tokens, tiling.row_tiles, tiling.token_tiles
        argument.halved = tiling.halved
        if tiling.halved:
            parts = empty(tiling.exchanges, ROWS * tiling.form.tokens, torch.int32)
            arrivals = exchanges(self.shape.device).of(stream, tiling.exchanges)
            argument.parts, argument.arrivals = parts.data_ptr(), address(arrivals)
        if x is not None:
            argument.x = x.data_ptr()
            quantize.resize(tokens)
            quantize.start(stream)
        product.resize(tiling.clusters * tiling.form.cluster)
        product.start(stream)
        self._idle.append(held)


@cache
def module_of(source: str, constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    return Module(FOLDER / source, dict(constants), device, specific=source == Wgmma.source)
