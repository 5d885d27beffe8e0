"""Products with weights quantized by groups, on NVIDIA GPUs: kernel.cu, compiled and launched.

Up to SMALL tokens run through it, in passes of at most PASS: what a weight takes to be read is what a pass takes.
More tokens run as torch's product with a copy of the weight in the dtype of the activations, made for the call.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_uint64
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..group_spec import GroupSpec
from ..groups import DenseGroups, Weight
from ..launch import aligned, stream_of
from ..nvrtc import Launch, Module
from ..quantize.reference import quantize
from .prepared import WARP, Layout, piece_of

SOURCE = Path(__file__).with_name("kernel.cu")
SMALL = 16
PASSES = (1, 2, 4)
"""Tokens of a launch: the smallest that suffices is used."""
WARPS = (24, 32)
"""Warps of a block, for small weights and others: with few pieces per warp, more warps only take longer to start."""
SMALL_WEIGHT = 200
"""A weight is small below this many times 32 pieces per multiprocessor."""
UNROLL = {1: 3, 2: 3, 4: 2}
"""Times 32 pieces that a warp has in flight, by the tokens of a pass."""
HELD = 4
"""Chunks of 8 activations that a thread holds in registers."""
OVERLAPPING_SINCE = (9, 0)
STATIC_SHARED = 2048 + WARPS[1] * 8 * 36 * 4
"""Bytes of shared memory that the kernel takes beside the activations, at most."""
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, None: 3}


class Arguments(ctypes.Structure):
    """The struct of kernel.cu."""

    _fields_ = (
        *(
            (name, c_uint64)
            for name in (
                "x", "values", "meta", "zero", "row_index", "cuts", "finished", "bias", "out",
            )
        ),
        *((name, c_int) for name in ("rows", "columns", "tokens")),
    )  # fmt: skip


class GroupGemm:
    """The products of linears of one shape on one device. Holds no weights: `prepare` makes what a call reads.

    dense: for weights of layout dense. division: how warps share the weight, see prepared.py.
    """

    def __init__(self, spec: GroupSpec, device: torch.device, *, dense: bool = False, division: str = "stream") -> None:
        self.spec, self.device = spec, device
        properties = torch.cuda.get_device_properties(device)
        blocks = properties.multi_processor_count
        few = spec.kept * spec.size // piece_of(spec) < SMALL_WEIGHT * WARP * blocks
        self.layout = Layout(spec, dense, blocks, WARPS[0] if few else WARPS[1], division)
        token = spec.columns * (2 if spec.activation_bits == 16 else 1) * (2 if spec.size == 4 else 1)
        free = properties.shared_memory_per_block_optin - STATIC_SHARED  # type: ignore[attr-defined]
        self.passes = [tokens for tokens in PASSES if tokens * token <= free]
        if not self.passes:
            raise ValueError(f"{spec}: a token takes {token} bytes of shared memory, {free} are there")
        self._token = token
        self._launches: dict[tuple[torch.dtype, torch.dtype | None, int], _Launches] = {}

    def prepare(self, weight: Weight) -> Tensor:
        """The prepared weight, uint8, on the device. ValueError if the weight is damaged."""
        prepared = self.layout.build(_on(weight, self.device))
        torch.cuda.synchronize(self.device)  # overlapping kernels read it before they wait for anything
        return prepared

    def weight(self, prepared: Tensor) -> Weight:
        """The tensors that `prepare` was given, to the bit."""
        return self.layout.weight(prepared)

    def __call__(self, x: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
        """x [M, K] bfloat16, float16 or float32, on the current device -> [M, N] like x."""
        tokens = x.shape[0]
        if tokens > SMALL:
            return self._many(x, prepared, bias)
        x = aligned(x)
        out = torch.empty(tokens, self.spec.rows, dtype=x.dtype, device=x.device)
        stream, wide, at = stream_of(self.device), x.element_size(), 0
        weight, term = prepared.data_ptr(), 0 if bias is None else bias.data_ptr()
        while at < tokens:
            many = next((one for one in self.passes if one >= tokens - at), self.passes[-1])
            launch = self._launch(x.dtype, None if bias is None else bias.dtype, many)
            done = min(many, tokens - at)
            launch.start(x.data_ptr() + at * self.spec.columns * wide, weight, term,
                         out.data_ptr() + at * self.spec.rows * wide, done, stream)  # fmt: skip
            at += done
        return out

    def dequantized(self, prepared: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        make = torch.empty if self.layout.dense else torch.zeros
        out = make(self.spec.rows, self.spec.columns, dtype=dtype, device=self.device)
        launch = self._launch(dtype, None, self.passes[0])
        launch.start_dequantize(prepared.data_ptr(), out.data_ptr(), stream_of(self.device))
        return out

    def _many(self, x: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
        weight = self.dequantized(prepared, x.dtype)
        if self.spec.activation_bits == 16:
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        codes, scale = quantize(x, torch.int8)  # integers up to 127: exact in every dtype
        out = torch.nn.functional.linear(codes.to(x.dtype), weight).float() * scale
        return (out if bias is None else out + bias.float()).to(x.dtype)

    def _launch(self, dtype: torch.dtype, bias: torch.dtype | None, tokens: int) -> _Launches:
        key = (dtype, bias, tokens)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._launches[key] = _Launches(
                self.layout, self.device, dtype, bias, tokens, tokens * self._token
            )
        return launch


class _Launches:
    """The compiled kernels for activations and biases of one kind, and a number of tokens."""

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        dtype: torch.dtype,
        bias: torch.dtype | None,
        tokens: int,
        shared: int,
    ) -> None:
        spec = layout.spec
        self.layout, self.tokens, self.device = layout, tokens, device
        held = -(-spec.columns // (8 * layout.warps * WARP))
        constants = {
            "SIZE": spec.size, "BITS": spec.bits, "TOKENS": tokens, "INT8": int(spec.activation_bits == 8),
            "X": KINDS[dtype], "OUT": KINDS[dtype], "BIAS": KINDS[bias], "DENSE": int(layout.dense),
            "ZERO": layout.zero_mode, "WARPS": layout.warps, "UNROLL": UNROLL[tokens],
            "HELD": held if held * tokens <= HELD and spec.size > 4 else 0,
        }  # fmt: skip
        module = _module(tuple(constants.items()), device)
        self._gemm = module.kernel("group_gemm", shared)
        self._dequantize = module.kernel("dequantize")
        self._threads = layout.warps * WARP
        self._overlapping = torch.cuda.get_device_capability(device) >= OVERLAPPING_SINCE
        self._idle: dict[tuple[int, int], list[Launch]] = {}

    def _arguments(self, prepared: int, bias: int) -> Arguments:
        spec, layout = self.layout.spec, self.layout
        names = ("values", "meta", "zero", "row_index", "cuts", "finished")
        addresses = {name: prepared + layout.sections[name][0] for name in names}
        return Arguments(**addresses, bias=bias, rows=spec.rows, columns=spec.columns)

    def start(self, x: int, prepared: int, bias: int, out: int, tokens: int, stream: int) -> None:
        """Addresses of x [tokens, K], a multiple of 16, of the prepared weight, bias [N] or 0, and out [tokens, N]."""
        idle = self._idle.setdefault((prepared, bias), [])
        try:
            launch = idle.pop()  # another thread finds another one
        except IndexError:
            arguments = self._arguments(prepared, bias)
            launch = Launch(self._gemm, self.layout.blocks, self._threads, arguments, overlapping=self._overlapping)
        argument = launch.argument
        argument.x, argument.out, argument.tokens = x, out, tokens
        launch.start(stream)
        idle.append(launch)

    def start_dequantize(self, prepared: int, out: int, stream: int) -> None:
        """Addresses of the prepared weight and of out [N, K]."""
        argument = self._arguments(prepared, 0)
        argument.out = out
        Launch(self._dequantize, self.layout.blocks, self._threads, argument).start(stream)


@cache
def _module(constants: tuple[tuple[str, int], ...], device: torch.device) -> Module:
    return Module(SOURCE, dict(constants), device)


def _on(weight: Weight, device: torch.device) -> Weight:
    moved = {name: tensor.detach().to(device) for name, tensor in weight.named().items()}
    return type(weight).of(moved)


def group_gemm(x: Tensor, groups: Weight, bias: Tensor | None, spec: GroupSpec) -> Tensor:
    """x [M, K] bfloat16, float16 or float32 on a CUDA device; bias [N] -> [M, N] like x: the reference's signature.

    Lays the weight out anew at every call; whoever calls again keeps a GroupGemm and its prepared weight.
    """
    op = GroupGemm(spec, x.device, dense=isinstance(groups, DenseGroups))
    return op(x, op.prepare(groups), bias)
