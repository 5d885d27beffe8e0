"""Dense INT8 product with scales and bias fused, in Triton: what torch._int_mm takes two passes for.

Sums are int32, scaled in float32 in the reference's order without fused multiply-adds: the same bits. Which tile is
fastest for how many tokens is timed once per power of two, on the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..autotune import Autotuner
from ..launch import Launcher, aligned, start, stream_of

TILES = (
    # tokens, columns, depth, warps, stages
    (16, 64, 256, 4, 4), (16, 128, 256, 4, 3), (32, 64, 256, 4, 4), (64, 64, 256, 4, 4), (64, 128, 128, 4, 4),
    (64, 256, 128, 4, 3), (128, 128, 128, 4, 4), (128, 128, 128, 8, 4), (128, 256, 128, 8, 3), (256, 128, 128, 8, 3),
)  # fmt: skip
GROUP = 8
"""Blocks of tokens that are worked on side by side, so that the weights they share stay in the cache."""
DEPTH_MULTIPLE = 16


@triton.jit(do_not_specialize=["tokens"])
def dense_gemm_kernel(
    codes_ptr,  # [tokens, depth]
    weight_ptr,  # [columns, depth]
    scale_ptr,  # [tokens] float32
    weight_scale_ptr,  # [columns] float32
    bias_ptr,  # [columns], not read without BIAS
    out_ptr,  # [tokens, columns]
    tokens,
    columns,
    depth,
    WHOLE: tl.constexpr,  # depth is a multiple of BLOCK_DEPTH
    BIAS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
):
    program = tl.program_id(0)
    token_blocks = tl.cdiv(tokens, BLOCK_TOKENS)
    wide = GROUP * tl.cdiv(columns, BLOCK_COLUMNS)
    first = program // wide * GROUP
    group = tl.minimum(token_blocks - first, GROUP)
    token = (first + program % wide % group) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    column = program % wide // group * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    place = tl.arange(0, BLOCK_DEPTH)
    # Beyond the end the first rows are read again; what they give is not written.
    codes_ptr += (token % tokens).to(tl.int64)[:, None] * depth + place[None, :]
    weight_ptr += (column % columns).to(tl.int64)[None, :] * depth + place[:, None]
    sums = tl.zeros([BLOCK_TOKENS, BLOCK_COLUMNS], tl.int32)
    for done in tl.range(0, depth, BLOCK_DEPTH, num_stages=STAGES):
        if WHOLE:
            a = tl.load(codes_ptr)
            b = tl.load(weight_ptr)
        else:
            a = tl.load(codes_ptr, mask=done + place[None, :] < depth, other=0)
            b = tl.load(weight_ptr, mask=done + place[:, None] < depth, other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        codes_ptr += BLOCK_DEPTH
        weight_ptr += BLOCK_DEPTH
    out = sums.to(tl.float32) * tl.load(scale_ptr + token, mask=token < tokens, other=0.0)[:, None]
    out *= tl.load(weight_scale_ptr + column, mask=column < columns, other=0.0)[None, :]
    if BIAS:
        out += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    out_ptr += token.to(tl.int64)[:, None] * columns + column[None, :]
    inside = (token < tokens)[:, None] & (column < columns)[None, :]
    tl.store(out_ptr, out.to(out_ptr.dtype.element_ty), mask=inside)


LAUNCHER = Launcher(dense_gemm_kernel)


class DenseGemm:
    """`dense_gemm` for weights of one shape and kinds of numbers on one device."""

    def __init__(
        self, rows: int, columns: int, bias: torch.dtype | None, out: torch.dtype, device: torch.device
    ) -> None:
        """rows, columns: N, K; K a multiple of 16."""
        self.rows, self.columns, self.bias, self.out, self.device = rows, columns, bias, out, device
        what = f"a dense {rows} x {columns} int8 product"
        self._autotuner = Autotuner(what, "dense_gemm", rows * out.itemsize + columns, device)
        self._compiled: dict[int, tuple[object, tuple[object, ...]]] = {}

    def start(self, pointers: tuple[int, ...], tokens: int, stream: int) -> None:
        """pointers: of codes [tokens, K], weight [N, K], scale, weight_scale, bias, out [tokens, N], all aligned.

        RuntimeError if a tile would have to be timed while a CUDA graph is captured.
        """
        self._start(self.tile(tokens, pointers[1]), pointers, tokens, stream)

    def tile(self, tokens: int, weight: int) -> int:
        """The fastest of TILES for so many tokens; timed on first use. weight: the address of any weight."""
        return self._autotuner.choose(tokens, lambda number: self._candidates(number, weight))

    def _start(self, tile: int, pointers: tuple[int, ...], tokens: int, stream: int) -> None:
        if tile not in self._compiled:
            self._compiled[tile] = self._compile(tile)
        kernel, constants = self._compiled[tile]
        blocks = -(-tokens // TILES[tile][0]) * -(-self.rows // TILES[tile][1])
        start(kernel, (blocks, 1), stream, *pointers, tokens, *constants)

    def _compile(self, tile: int) -> tuple[object, tuple[object, ...]]:
        *shape, warps, stages = TILES[tile]
        # The sizes are no constants of the kernel, but it is compiled for whether they are multiples of 16.
        constants = (self.columns % shape[2] == 0, self.bias is not None, *shape, stages, GROUP)
        kinds = (torch.int8, torch.int8, torch.float32, torch.float32, self.bias or torch.float32, self.out)
        like = [torch.empty(16, dtype=kind, device=self.device) for kind in kinds]
        key = (self.device, self.bias, self.out, warps, self.rows % 16 == 0, constants)
        sizes = (self.rows, self.columns)
        return LAUNCHER.compiled(key, (*like, 1, *sizes), constants, warps), (*sizes, *constants)

    def _candidates(self, tokens: int, weight: int) -> Iterator[tuple[int, Callable[[int], None]]]:
        codes = torch.randint(-100, 100, (tokens, self.columns), dtype=torch.int8, device=self.device)
        scale = torch.ones(max(tokens, self.rows), dtype=torch.float32, device=self.device)
        out = torch.empty(tokens, self.rows, dtype=self.out, device=self.device)
        one = scale.data_ptr()
        pointers = (codes.data_ptr(), weight, one, one, one, out.data_ptr())
        for tile, shape in enumerate(TILES):
            if shape[0] > max(16, tokens) or 4 * shape[0] < min(tokens, 512):
                continue  # mostly padding, or far too small
            try:
                self._start(tile, pointers, tokens, torch.cuda.current_stream(self.device).cuda_stream)
            except triton.runtime.errors.OutOfResources:
                continue  # more shared memory than this GPU has
            yield tile, partial(self._start, tile, pointers, tokens)


@cache
def gemm_for(rows: int, columns: int, bias: torch.dtype | None, out: torch.dtype, device: torch.device) -> DenseGemm:
    """The one DenseGemm of this process for such weights."""
    return DenseGemm(rows, columns, bias, out, device)


def dense_gemm(
    codes: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """codes [M, K], weight [N, K] int8 on a CUDA device, K a multiple of 16; scale [M, 1], weight_scale [N] float32;
    bias [N] -> [M, N] of `dtype`, the same bits as the reference gives."""
    out = torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device)
    if not out.numel():
        return out
    gemm = gemm_for(weight.shape[0], weight.shape[1], None if bias is None else bias.dtype, dtype, codes.device)
    tensors = [
        aligned(tensor) for tensor in (codes, weight, scale, weight_scale, weight_scale if bias is None else bias)
    ]
    gemm.start((*(tensor.data_ptr() for tensor in tensors), out.data_ptr()), codes.shape[0], stream_of(codes.device))
    return out
