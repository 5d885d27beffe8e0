"""Products with weights quantized by groups, on NVIDIA GPUs: kernel.cu, compiled and launched.

Up to MOST_TOKENS tokens are multiplied with the weight as it is stored. More run as torch's product with a copy of the
weight in the dtype of the activations, made for the call.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_uint64
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..driver import Launch, Module
from ..few_tokens.division import ceil_div
from ..few_tokens.exchange import address, exchanges
from ..group_spec import GroupSpec
from ..groups import DenseGroups, Groups, Weight
from ..launch import aligned, stream_of
from ..quantize.reference import quantize
from .division import FEW, LIMITS, MOST_TOKENS, Division, Gpu, divide
from .prepared import UNIT, Layout, Prepared

SOURCE = Path(__file__).with_name("kernel.cu")
OVERLAPPING_SINCE = (9, 0)
WARPGROUPS = (9, 0)
"""The compute capability that has wgmma."""
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, None: 3}
CODES = 3
"""X of kernel.cu for INT8 codes."""
DEQUANTIZERS = 8
"""Blocks of a multiprocessor that dequantize."""
CONVERTERS, MOST_SHARES = 512, 4
"""Threads of a block that converts activations, eight of a token at a time; blocks of a token, at most."""


class Arguments(ctypes.Structure):
    """The struct of kernel.cu."""

    _fields_ = (
        *((name, c_uint64) for name in ("x", "scale", "halves", "back")),
        *((name, c_uint64) for name in ("chunks", "offsets", "factor", "bias", "out", "sums")),
        *((name, c_int) for name in ("rows", "columns", "tokens", "units", "tiles", "room")),
    )


class GroupGemm:
    """The products of linears of one spec on one device. Holds no weights: `prepare` makes what a call reads."""

    def __init__(self, spec: GroupSpec, device: torch.device) -> None:
        self.spec, self.device, self.layout = spec, device, Layout(spec)
        self._divisions: dict[int, dict[int, Division]] = {}
        self._launches: dict[tuple[torch.dtype, torch.dtype | None, int, int], _Launches] = {}

    @cached_property
    def gpu(self) -> Gpu:
        properties = torch.cuda.get_device_properties(self.device)
        return Gpu(
            properties.multi_processor_count,
            properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
            properties.shared_memory_per_multiprocessor,
            torch.cuda.get_device_capability(self.device) == WARPGROUPS,
        )

    @cached_property
    def overlapping(self) -> bool:
        return torch.cuda.get_device_capability(self.device) >= OVERLAPPING_SINCE

    def prepare(self, weight: Weight) -> tuple[Tensor, ...]:
        """The prepared weight (prepared.py), on the device. ValueError if the weight is damaged."""
        prepared = self.layout.build(_on(weight, self.device))
        torch.cuda.synchronize(self.device)  # overlapping kernels read it before they wait for anything
        return prepared

    def weight(self, prepared: Prepared) -> Weight:
        """The tensors that `prepare` was given, to the bit."""
        return self.layout.weight(prepared)

    def load(self, prepared: Prepared, dtype: torch.dtype, bias: torch.dtype | None = None) -> None:
        """Compile and load what calls with such activations and biases need, all at once, so that none has to: a module
        cannot be loaded while a CUDA graph is captured."""
        room = prepared[3].shape[1]
        keys = [(dtype, bias, limit, room) for limit in self.divisions(room)]
        missing = [key for key in keys if key not in self._launches]
        if not missing:
            return
        with ThreadPoolExecutor() as pool:
            self._launches.update(zip(missing, pool.map(lambda key: _Launches(self, *key), missing), strict=True))

    def divisions(self, room: int) -> dict[int, Division]:
        """By the tokens that they are for, at most: how products with a weight of chunks of at most `room` bytes are
        divided. ValueError if the GPU has too little shared memory for any."""
        found = self._divisions.get(room)
        if found is None:
            spec = self.spec
            limits = [limit for limit in LIMITS if limit > FEW or self.layout.placed]
            best = {limit: divide(spec.rows, spec.columns, limit, room, self.gpu) for limit in limits}
            found = self._divisions[room] = {limit: division for limit, division in best.items() if division}
        if not found:
            raise ValueError(f"{self.spec}: chunks of {room} bytes take more shared memory than a block may have")
        return found

    def __call__(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x [M, K] bfloat16, float16 or float32, on the current device -> [M, N] like x."""
        tokens = x.shape[0]
        if tokens > MOST_TOKENS:
            return self._many(x, prepared, bias)
        most = max(self.divisions(prepared[3].shape[1]))
        if tokens > most:  # on GPUs with little shared memory
            return torch.cat([self(some, prepared, bias) for some in x.split(most)])
        out = torch.empty(tokens, self.spec.rows, dtype=x.dtype, device=x.device)
        if tokens:
            self._launch(x.dtype, bias, tokens, prepared).start(aligned(x), prepared, bias, out)
        return out

    def dequantized(self, prepared: Prepared, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        out = torch.empty(self.spec.rows, self.spec.columns, dtype=dtype, device=self.device)
        self._launch(dtype, None, 1, prepared).start_dequantize(prepared, out)
        return out

    def _many(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        weight = self.dequantized(prepared, x.dtype)
        if self.spec.activation_bits == 16:
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        codes, scale = quantize(x, torch.int8)  # integers up to 127: exact in every dtype
        out = torch.nn.functional.linear(codes.to(x.dtype), weight).float() * scale
        return (out if bias is None else out + bias.float()).to(x.dtype)

    def _launch(self, dtype: torch.dtype, bias: Tensor | None, tokens: int, prepared: Prepared) -> _Launches:
        room = prepared[3].shape[1]
        limit = next(limit for limit in self.divisions(room) if limit >= tokens)
        key = (dtype, None if bias is None else bias.dtype, limit, room)
        launches = self._launches.get(key)
        if launches is None:
            launches = self._launches[key] = _Launches(self, *key)
        return launches


class _Launches:
    """The compiled kernels for activations and biases of one kind, up to a number of tokens, and a room."""

    def __init__(self, op: GroupGemm, dtype: torch.dtype, bias: torch.dtype | None, tokens: int, room: int) -> None:
        self.op, self.division = op, op.divisions(room)[tokens]
        spec, form = op.spec, self.division.form
        constants = {
            "PIECE": op.layout.piece, "BITS": spec.bits, "SHARE": op.layout.share, "TILES": self.division.token_tiles,
            "FEW": self.division.tokens if self.division.few else 0,
            "X": CODES if spec.activation_bits == 8 else KINDS[dtype], "OUT": KINDS[dtype], "BIAS": KINDS[bias],
            "ROW_WARPS": form.rows, "COLUMN_WARPS": form.columns, "STAGES": form.stages, "BLOCKS": form.blocks,
            "WARPGROUP": int(form.warpgroup), "CLUSTER": form.cluster,
        }  # fmt: skip
        module = _module(tuple(constants.items()), op.device)
        self._convert = None if self.division.few else module.kernel("convert")
        self._product = module.kernel("product", self.division.shared_bytes)
        self._dequantize = module.kernel("dequantize")
        self._exchanged = self.division.exchanged
        self._idle: list[tuple[Arguments, dict[int, Launch], Launch]] = []

    def _arguments(self, prepared: Prepared) -> Arguments:
        spec, division = self.op.spec, self.division
        chunks, offsets, factor, _ = prepared
        return Arguments(
            chunks=chunks.data_ptr(), offsets=offsets.data_ptr(), factor=factor.data_ptr(), rows=spec.rows,
            columns=spec.columns, units=division.units, tiles=division.tiles, room=division.room,
        )  # fmt: skip

    def start(self, x: Tensor, prepared: Prepared, bias: Tensor | None, out: Tensor) -> None:
        """x [M, K] contiguous at a multiple of 16, out [M, N], M at least 1."""
        op, division, tokens = self.op, self.division, x.shape[0]
        stream = stream_of(op.device)
        try:
            held = self._idle.pop()  # another thread finds another one
        except IndexError:
            argument = self._arguments(prepared)
            threads = division.form.warps * 32
            product = Launch(self._product, division.blocks, threads, argument, overlapping=op.overlapping)
            held = argument, {}, product
        argument, converts, product = held
        if op.spec.activation_bits == 8:
            from ..quantize.kernel import quantize as quantize_on_gpu  # of use on GPUs alone

            codes, scale = quantize_on_gpu(x, torch.int8)
            argument.x, argument.scale = codes.data_ptr(), scale.data_ptr()
        else:
            argument.x = x.data_ptr()
        chunks, offsets, factor, _ = prepared
        argument.chunks, argument.offsets, argument.factor = chunks.data_ptr(), offsets.data_ptr(), factor.data_ptr()
        argument.bias, argument.out = 0 if bias is None else bias.data_ptr(), out.data_ptr()
        argument.tokens = tokens
        if self._exchanged:
            exchange = exchanges(op.device).of(stream, self._exchanged)
            argument.sums = address(exchange)
        if self._convert is not None:
            rows = 8 * division.token_tiles if division.form.warpgroup else tokens
            halves = torch.empty(rows * division.units * UNIT, dtype=torch.float16, device=x.device)
            back = torch.empty(tokens, dtype=torch.float32, device=x.device)
            argument.halves, argument.back = halves.data_ptr(), back.data_ptr()
            convert = converts.get(tokens)
            if convert is None:
                shares = min(MOST_SHARES, ceil_div(division.units * UNIT, 8 * CONVERTERS))
                convert = Launch(self._convert, (tokens, shares), CONVERTERS, argument, overlapping=op.overlapping)
                converts[tokens] = convert
            convert.start(stream)
        product.start(stream)
        self._idle.append(held)

    def start_dequantize(self, prepared: Prepared, out: Tensor) -> None:
        """out [N, K]."""
        op = self.op
        argument = self._arguments(prepared)
        argument.out = out.data_ptr()
        threads = self.division.form.warps * 32
        blocks = op.gpu.processors * DEQUANTIZERS
        Launch(self._dequantize, blocks, threads, argument).start(stream_of(op.device))


@cache
def _module(constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    return Module(SOURCE, dict(constants), device, specific=bool(dict(constants)["WARPGROUP"]))


def _on(weight: Weight, device: torch.device) -> Weight:
    moved = {name: tensor.detach().to(device) for name, tensor in weight.named().items()}
    return DenseGroups.of(moved) if isinstance(weight, DenseGroups) else Groups.of(moved)
