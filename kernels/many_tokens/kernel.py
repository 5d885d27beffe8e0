"""Products of many tokens with sparse 8-bit weights on NVIDIA GPUs: kernel.cu or portable.cu, compiled and launched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_uint64
from functools import cache, cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..few_tokens.division import ROWS, ceil_div
from ..few_tokens.exchange import address, exchanges
from ..few_tokens.kernel import SINCE, WARPGROUPS, Device, FewTokens
from ..few_tokens.prepared import GROUP, Order
from ..few_tokens.produce import KINDS, OVERLAPPING_SINCE
from ..launch import aligned, stream_of
from ..operand import Operand
from ..slide_spec import SlideSpec, SlideWeight
from ..tensor_map import TensorMap, bytes_map
from .tiles import FORMS, PORTABLE, Fitted, Form, Mma, Tiling, Wgmma

FOLDER = Path(__file__).parent
MOST_QUANTIZERS = 512
"""Threads of a block that quantizes a token, at most."""
MOST_HELD = 256
"""Bytes of a token that one of them can hold in registers."""
MOST_MAPS = 64
"""Descriptions of codes that a form remembers: torch's allocator gives the same memory again and again."""
MOST_TILINGS = 4096
"""Numbers of tokens whose tilings are remembered."""
COLUMNS_MULTIPLE = 8
"""What K must be a multiple of: activations are read 16 bytes at a time."""


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


def refusal(spec: SlideSpec, capability: tuple[int, int]) -> str:
    """Why a GPU of this compute capability cannot run such a linear; "" if it can."""
    if capability < SINCE[spec.dtype]:
        return f"the product of many tokens needs compute capability {'.'.join(map(str, SINCE[spec.dtype]))}"
    if spec.columns % COLUMNS_MULTIPLE:
        return f"K = {spec.columns} is no multiple of {COLUMNS_MULTIPLE}"
    return ""


class ManyTokens:
    """Products of linears of one shape on one device. Holds no weights: `prepare` makes what a call reads, the same as
    FewTokens of a sparse weight.

    forms: of tiles, among which each number of tokens has the one that suits it; None: those of the device.
    """

    def __init__(self, spec: SlideSpec, device: torch.device, *, forms: Sequence[Form] | None = None) -> None:
        self.spec, self.device, self._forms = spec, device, forms
        self._few = FewTokens(spec, device)
        self._launches: dict[tuple[torch.dtype, torch.dtype | None, Form], _Launches] = {}
        self.tiling = lru_cache(MOST_TILINGS)(self._tiling)

    @cached_property
    def gpu(self) -> Device:
        """ValueError if it cannot run the linear."""
        found = Device.of(self.device)
        if why := refusal(self.spec, found.capability):
            raise ValueError(f"{self.spec}: {why}")
        return found

    @cached_property
    def order(self) -> Order:
        return Order.of(self.spec.length)

    @cached_property
    def units(self) -> int:
        return self.order.units(self.spec)

    @cached_property
    def pieces(self) -> int:
        """Pieces of 16 codes of a token."""
        return self.units * self.order.unit.columns // 16

    def quantizers(self, dtype: torch.dtype) -> tuple[int, int]:
        """Threads of a block that quantizes a token, and shares of four blocks of columns that each of them holds in
        registers: as few as hold them all, or 0 if these are too many."""
        shares = ceil_div(self.pieces, self.order.windows)
        held = ceil_div(shares, MOST_QUANTIZERS)
        fits = held * 4 * self.spec.block * dtype.itemsize <= MOST_HELD
        return 32 * ceil_div(shares, 32 * held), held if fits else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the prepared weight, without the scale."""
        return self._few.nbytes

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, Tensor]:
        """Fragments, uint8; and the scale [N] float32."""
        return self._few.prepare(weight)

    def weight(self, prepared: Tensor, scale: Tensor) -> SlideWeight:
        """The weight that `prepare` was given, to the bit."""
        return self._few.weight(prepared, scale)

    @cached_property
    def forms(self) -> dict[Form, Fitted]:
        """Those that fit the device."""
        gpu = self.gpu
        forms = self._forms or (FORMS if gpu.capability == WARPGROUPS else PORTABLE)
        free, unit = gpu.shared_bytes, self.order.unit
        found = {form: form.fitted(unit, free) for form in forms if form.splits <= self.units}
        return {form: fitted for form, fitted in found.items() if fitted is not None}

    def _tiling(self, tokens: int) -> Tiling:
        """How so many tokens are divided, in the form that suits them."""
        return min((self.tiled(tokens, form) for form in self.forms), key=lambda tiling: tiling.cycles)

    def tiled(self, tokens: int, form: Form) -> Tiling:
        """How so many tokens are divided in this form."""
        return Tiling(self.spec.rows, self.spec.slid, tokens, self.order.unit, form, self.gpu.processors)

    def load(self, dtype: torch.dtype, bias: torch.dtype | None = None) -> None:
        """Compile and load what calls with such activations and biases need, all at once, so that none has to: a module
        cannot be loaded while a CUDA graph is captured."""
        keys = [(dtype, bias, form) for form in self.forms if (dtype, bias, form) not in self._launches]
        if not keys:
            return
        sources = [self.quantizing(dtype), *(self.multiplying(*key) for key in keys)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source: _module(*source, self.device), sources))  # each once
            self._launches.update(zip(keys, pool.map(lambda key: _Launches(self, *key), keys), strict=True))

    def quantizing(self, dtype: torch.dtype) -> Source:
        threads, held = self.quantizers(dtype)
        constants = {
            "LENGTH": self.spec.length or 2, "X": KINDS[dtype], "FLOAT": int(self.spec.dtype != torch.int8),
            "QUANTIZERS": threads, "HELD": held, **self.order.constants,
        }  # fmt: skip
        return "quantize.cu", tuple(constants.items())

    def multiplying(self, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> Source:
        return form.source, tuple(self.constants(dtype, bias, form).items())

    def constants(self, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> dict[str, int]:
        """What the form's source is compiled with."""
        return {
            "LENGTH": self.spec.length or 2, "UNIT": self.order.unit.columns, "X": KINDS[dtype], "BIAS": KINDS[bias],
            "FLOAT": int(self.spec.dtype != torch.int8), **self.order.constants,
            **self.forms[form].constants,
        }  # fmt: skip

    @cached_property
    def operand(self) -> Operand:
        """How it reads codes. Tiles of tokens read scales whole."""
        spec, order = self.spec, self.order
        blocks, spare = GROUP if order.bounds else 1, max(form.tokens for form in self.forms)
        return Operand(spec.columns, spec.dtype, True, spec.length, blocks, order.unit.columns, spare=spare)

    def __call__(self, x: Tensor, prepared: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """x [M, K] bfloat16, float16 or float32, on the current device; bias [N] -> [M, N] like x."""
        tokens = x.shape[0]
        out = torch.empty(tokens, self.spec.rows, dtype=x.dtype, device=x.device)
        if tokens:
            codes = torch.empty(tokens, self.pieces * 16, dtype=torch.uint8, device=x.device)
            tiling = self.tiling(tokens)
            # Tiles of tokens read it whole.
            scale = torch.empty(tiling.token_tiles * tiling.form.tokens, dtype=torch.float32, device=x.device)
            launches = self._prepared(tiling, x.dtype, bias)
            launches.start(tiling, aligned(x), (codes, scale), prepared, bias, out)
        return out

    def of_codes(
        self, codes: Tensor, scale: Tensor, prepared: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """codes of the operand, scale [M, 1] float32 as it asks for, at a multiple of 16, on the current device; bias
        [N] -> [M, N] of `dtype`."""
        tokens = scale.shape[0]
        out = torch.empty(tokens, self.spec.rows, dtype=dtype, device=codes.device)
        if tokens:
            tiling = self.tiling(tokens)
            self._prepared(tiling, dtype, bias).start(tiling, None, (aligned(codes), scale), prepared, bias, out)
        return out

    def _prepared(self, tiling: Tiling, dtype: torch.dtype, bias: Tensor | None) -> _Launches:
        key = (dtype, None if bias is None else bias.dtype, tiling.form)
        launches = self._launches.get(key)
        if launches is None:
            launches = self._launches[key] = _Launches(self, *key)
        return launches


class _Launches:
    """The compiled kernels of a form for activations and biases of one kind."""

    def __init__(self, op: ManyTokens, dtype: torch.dtype, bias: torch.dtype | None, form: Form) -> None:
        self.op, self.form = op, form
        self._quantizers, _ = op.quantizers(dtype)
        self._quantize = _module(*op.quantizing(dtype), op.device).kernel("quantize")
        product = _module(*op.multiplying(dtype, bias, form), op.device)
        self._product = product.kernel("product", op.forms[form].shared_bytes)
        self._overlapping = op.gpu.capability >= OVERLAPPING_SINCE
        self._idle: list[tuple[Arguments, Launch, Launch]] = []
        self._maps: dict[tuple[int, int], TensorMap] = {}

    def _made(self) -> tuple[Arguments, Launch, Launch]:
        op, overlapping = self.op, self._overlapping
        argument = Arguments(rows=op.spec.rows, columns=op.spec.columns, units=op.units, pieces=op.pieces)
        quantize = Launch(self._quantize, 1, self._quantizers, argument, overlapping=overlapping)
        return argument, quantize, Launch(self._product, 1, self.form.threads, argument, overlapping=overlapping)

    def _map(self, codes: int, tokens: int) -> TensorMap:
        if isinstance(self.form, Mma):
            return TensorMap()
        found = self._maps.get((codes, tokens))
        if found is None:
            if len(self._maps) >= MOST_MAPS:
                self._maps.clear()
            found = bytes_map(codes, tokens, self.op.pieces * 16, self.form.tokens // self.form.sharers)
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
        tokens, stream = out.shape[0], stream_of(self.op.device)
        (codes, token_scale), (weight, scale) = quantized, prepared
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            held = self._made()
        argument, quantize, product = held
        argument.map = self._map(codes.data_ptr(), tokens)
        argument.weight, argument.weight_scale = weight.data_ptr(), scale.data_ptr()
        argument.codes, argument.scale, argument.out = codes.data_ptr(), token_scale.data_ptr(), out.data_ptr()
        argument.bias = 0 if bias is None else bias.data_ptr()
        argument.tokens, argument.row_tiles, argument.token_tiles = tokens, tiling.row_tiles, tiling.token_tiles
        argument.halved = tiling.halved
        if tiling.halved:
            parts = torch.empty(tiling.exchanges * ROWS * tiling.form.tokens, dtype=torch.int32, device=out.device)
            arrivals = exchanges(out.device).of(stream, tiling.exchanges)
            argument.parts, argument.arrivals = parts.data_ptr(), address(arrivals)
        if x is not None:
            argument.x = x.data_ptr()
            quantize.resize(tokens)
            quantize.start(stream)
        product.resize(tiling.clusters * tiling.form.cluster)
        product.start(stream)
        self._idle.append(held)


@cache
def _module(source: str, constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    return Module(FOLDER / source, dict(constants), device, specific=source == Wgmma.source)
