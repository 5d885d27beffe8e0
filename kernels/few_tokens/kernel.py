"""Products of at most 64 tokens with 8-bit weights on NVIDIA GPUs: kernel.cu, compiled and launched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_uint64
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..launch import aligned, stream_of
from ..operand import WORDS, Operand
from ..slide_spec import SlideSpec, SlideWeight
from .division import MANY_SLABS, MOST_TOKENS, ROWS, Division, Unit, ceil_div, clustered, divisions, whole
from .exchange import address, exchanges
from .prepared import GROUP, Order
from .produce import KINDS, OVERLAPPING_SINCE, PLAIN, empty, quantize_for

SOURCE = Path(__file__).with_name("kernel.cu")
TILES = (1, 2, 4, 8)
"""Tokens / 8 that kernel.cu is compiled for."""
DENSE_UNIT = Unit(256, 4096, half=Unit(128, 2048))
STATIC_SHARED = 1024
"""Bytes of shared memory that the product takes beside what is asked for, at most."""
WARPGROUPS = (9, 0)
"""The compute capability that has wgmma."""
SINCE = {torch.int8: (8, 0), torch.float8_e4m3fn: (8, 9)}
COLUMNS_MULTIPLE = {False: 8, True: 16}
"""What K must be a multiple of, by whether the weight is dense: 16 bytes are copied at a time."""


class Arguments(ctypes.Structure):
    """The struct of kernel.cu."""

    _fields_ = (
        *((name, c_uint64) for name in ("weight", "codes", "scale", "weight_scale", "bias", "out", "sums")),
        *((name, c_int) for name in ("rows", "columns", "tokens", "units", "tiles")),
        ("padding", c_int),
    )


@dataclass(frozen=True)
class Device:
    """What the kernel must know of a GPU. shared_bytes: of a block, at most."""

    processors: int
    shared_bytes: int
    capability: tuple[int, int]

    @classmethod
    def of(cls, device: torch.device) -> Device:
        properties = torch.cuda.get_device_properties(device)
        shared: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
        return cls(properties.multi_processor_count, shared, torch.cuda.get_device_capability(device))


class FewTokens:
    """Products of linears of one shape on one device. Holds no weights: `prepare` makes what a call reads.

    dense: dense codes [N, K], as other dense products read them; else fragments of the sparse operand (prepared.py).
    warpgroup: whether to multiply by wgmma; None: where the device has it.
    """

    def __init__(
        self, spec: SlideSpec, device: torch.device, *, dense: bool = False, warpgroup: bool | None = None
    ) -> None:
        self.spec, self.device, self.dense, self._warpgroup = spec, device, dense, warpgroup
        self._launches: dict[tuple[torch.dtype, torch.dtype | None, int], _Launches] = {}
        self.operand = cache(self._operand)

    @cached_property
    def gpu(self) -> Device:
        """ValueError if it cannot run the linear."""
        found = Device.of(self.device)
        if why := refusal(self.spec, found.capability, dense=self.dense):
            raise ValueError(f"{self.spec}: {why}")
        return found

    @property
    def warpgroup(self) -> bool:
        """Whether it multiplies by wgmma."""
        return self.gpu.capability == WARPGROUPS if self._warpgroup is None else self._warpgroup

    def prepare(self, weight: SlideWeight) -> tuple[Tensor, Tensor]:
        """The prepared weight: int8 [N, K], or fragments (prepared.py); and the scale [N] float32."""
        if self.dense:
            prepared = weight.dense.to(self.device).contiguous().view(torch.int8)
        else:
            prepared = self.order.fragments(weight, self.device)
        torch.cuda.synchronize(self.device)  # overlapping kernels read it before they wait for anything
        return prepared, weight.scale.detach().to(self.device).view(-1)

    def weight(self, prepared: Tensor, scale: Tensor) -> SlideWeight:
        """The weight that `prepare` was given, to the bit."""
        scale = scale.view(-1, 1)
        if self.dense:
            return SlideWeight(self.spec, scale, dense=prepared.view(self.spec.dtype))
        return self.order.weight(self.spec, prepared, scale)

    @property
    def order(self) -> Order:
        """Of a sparse weight."""
        return Order.of(self.spec.length)

    @property
    def unit(self) -> Unit:
        return DENSE_UNIT if self.dense else self.order.unit

    @property
    def columns(self) -> int:
        """K', or K if dense: those of the prepared weight, not padded."""
        return self.spec.columns if self.dense else self.spec.slid

    @property
    def nbytes(self) -> int:
        """Bytes of the prepared weight, without the scale."""
        if self.dense:
            return self.spec.rows * self.spec.columns
        return ceil_div(self.spec.rows, ROWS) * self.order.units(self.spec) * 4 * self.order.unit.warp_bytes

    def load(self, dtype: torch.dtype, bias: torch.dtype | None = None) -> None:
        """Compile and load what calls with such activations and biases need, all at once, so that none has to: a module
        cannot be loaded while a CUDA graph is captured."""
        keys = [key for tiles in TILES if (key := (dtype, bias, tiles)) not in self._launches]
        if not keys:
            return
        with ThreadPoolExecutor() as pool:
            self._launches.update(zip(keys, pool.map(lambda key: _Launches(self, *key), keys), strict=True))

    def division(self, tokens: int) -> Division:
        """How the product of so many tokens is divided. ValueError if the device has too little shared memory."""
        shape = (self.spec.rows, self.columns, 8 * _tiles(tokens), self.unit, self.gpu.processors)
        free = self.gpu.shared_bytes - STATIC_SHARED
        equal = next((one for one in divisions(*shape) if one.fits(free)), None)
        if equal is None:
            raise ValueError(f"{self.spec}: {tokens} tokens take more than {free} bytes of shared memory")
        if self.gpu.capability != WARPGROUPS:
            return equal
        # By mma FP8 has too few registers in blocks so large.
        rows = next((one for one in (whole(*shape) if self.warpgroup else ()) if one.fits(free)), None)
        if rows is not None and rows.form.slabs > MANY_SLABS:
            return rows
        others = [one for one in clustered(*shape) if one.fits(free)]
        return min((equal, *others, *filter(None, [rows])), key=lambda one: one.cost)

    def _operand(self, tokens: int) -> Operand:
        """How the product of so many tokens reads codes."""
        spec, multiple, interleaved = self.spec, self.unit.columns, 8 * _tiles(tokens)
        if self.dense:
            return Operand(spec.columns, spec.dtype, blocks=WORDS, multiple=multiple, interleaved=interleaved)
        blocks = GROUP if self.order.bounds else 1
        return Operand(spec.columns, spec.dtype, True, spec.length, blocks, multiple, interleaved)

    def constants(self, dtype: torch.dtype, bias: torch.dtype | None, division: Division) -> dict[str, int]:
        """What kernel.cu is compiled with."""
        spec, form, unit = self.spec, division.form, division.unit
        halves = self.unit.columns // unit.columns
        return {
            "SPARSE": int(not self.dense), "LENGTH": 0 if self.dense else spec.length or 2, "UNIT": unit.columns,
            "FLOAT": int(spec.dtype != torch.int8), "TILES": division.padded // 8, "GROUPS": form.groups,
            "STAGES": form.stages, "ROW_GROUPS": form.row_groups, "STREAM": int(form.stream), "X": KINDS[dtype],
            "CLUSTER": form.cluster, "SLABS": form.slabs, "BIAS": KINDS[bias], "WARPGROUP": int(self.warpgroup),
            "HALVES": halves, **({} if self.dense else self.order.constants),
            "METADATA": 0 if self.dense else self.order.metadata // halves,
        }  # fmt: skip

    def __call__(self, x: Tensor, prepared: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        """x [M, K] bfloat16, float16 or float32, M <= 64, on the current device; bias [N] -> [M, N] like x."""
        tokens = x.shape[0]
        out = torch.empty(tokens, self.spec.rows, dtype=x.dtype, device=x.device)
        if tokens:
            launches = self._prepared(tokens, x.dtype, bias)
            codes, scale = empty(launches.operand, tokens, x.device)
            launches.quantize(aligned(x), codes, scale)
            launches.multiply(codes, scale, prepared, bias, out)
        return out

    def of_codes(
        self, codes: Tensor, scale: Tensor, prepared: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """codes of the operand, scale [M, 1] float32, M <= 64, on the current device; bias [N] -> [M, N] of `dtype`."""
        tokens = scale.shape[0]
        out = torch.empty(tokens, self.spec.rows, dtype=dtype, device=codes.device)
        if tokens:
            launches = self._prepared(tokens, dtype, bias)
            launches.multiply(aligned(codes), aligned(scale), prepared, bias, out)
        return out

    def _prepared(self, tokens: int, dtype: torch.dtype, bias: Tensor | None) -> _Launches:
        if tokens > MOST_TOKENS:
            raise ValueError(f"{self.spec}: {tokens} tokens, at most {MOST_TOKENS} are few")
        key = (dtype, None if bias is None else bias.dtype, _tiles(tokens))
        launches = self._launches.get(key)
        if launches is None:
            launches = self._launches[key] = _Launches(self, *key)
        return launches


def refusal(spec: SlideSpec, capability: tuple[int, int], *, dense: bool) -> str:
    """Why a GPU of this compute capability cannot run such a linear; "" if it can."""
    if capability < SINCE[spec.dtype]:
        return f"the product of few tokens needs compute capability {'.'.join(map(str, SINCE[spec.dtype]))}"
    if spec.columns % COLUMNS_MULTIPLE[dense]:
        return f"K = {spec.columns} is no multiple of {COLUMNS_MULTIPLE[dense]}"
    return ""


def _tiles(tokens: int) -> int:
    """Tokens / 8, as kernel.cu is compiled for."""
    return next(tiles for tiles in TILES if 8 * tiles >= tokens)


class _Launches:
    """The compiled kernels for activations and biases of one kind and up to a number of tokens."""

    def __init__(self, op: FewTokens, dtype: torch.dtype, bias: torch.dtype | None, tiles: int) -> None:
        self.op, self.division, self.operand = op, op.division(8 * tiles), op.operand(8 * tiles)
        module = _module(tuple(op.constants(dtype, bias, self.division).items()), op.device)
        self._quantize = quantize_for(PLAIN, self.operand, dtype, op.device)
        self._product = module.kernel("product", self.division.shared_bytes)
        self._exchanged = self.division.exchanged
        self._overlapping = op.gpu.capability >= OVERLAPPING_SINCE
        self._idle: list[tuple[Arguments, Launch]] = []

    def _made(self) -> tuple[Arguments, Launch]:
        spec, division = self.op.spec, self.division
        argument = Arguments(rows=spec.rows, columns=spec.columns, units=division.units, tiles=division.tiles)
        threads = division.form.groups * 128
        return argument, Launch(self._product, division.blocks, threads, argument, overlapping=self._overlapping)

    def quantize(self, x: Tensor, codes: Tensor, scale: Tensor) -> None:
        """x [M, K] contiguous at a multiple of 16, M at least 1, to codes of the operand."""
        addresses = {"x": x.data_ptr(), "codes": codes.data_ptr(), "scale": scale.data_ptr()}
        self._quantize.start(addresses, (x.shape[1], 0), x.shape[0], stream_of(self.op.device))

    def multiply(
        self, codes: Tensor, scale: Tensor, prepared: Sequence[Tensor], bias: Tensor | None, out: Tensor
    ) -> None:
        """codes of the operand, out [M, N], M at least 1."""
        stream, (weight, weight_scale) = stream_of(self.op.device), prepared
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            held = self._made()
        argument, product = held
        argument.weight, argument.weight_scale = weight.data_ptr(), weight_scale.data_ptr()
        argument.codes, argument.scale, argument.out = codes.data_ptr(), scale.data_ptr(), out.data_ptr()
        argument.bias = 0 if bias is None else bias.data_ptr()
        argument.tokens = out.shape[0]
        if self._exchanged:
            exchange = exchanges(self.op.device).of(stream, self._exchanged)
            argument.sums = address(exchange)
        product.start(stream)
        self._idle.append(held)


@cache
def _module(constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    return Module(SOURCE, dict(constants), device, specific=bool(dict(constants)["WARPGROUP"]))
