"""The form in which kernel.cu reads a grouped weight: one run of bytes, made once from the tensors of a checkpoint.

    values     the stored codes of the groups, row after row, as they are in a checkpoint
    meta       4 bytes a group: scale << 16 | zero << 12 | index, the zero point in it where it fits
    zero       zero points that are not in meta: of 4 bits two a byte
    row_index  int32 [N+1]
    cuts       int32 [workers+1]: at which piece each warp begins; pieces are groups, or 16 bytes of large ones
    finished   int32 [workers+1]: how many rows end in the warps before it

The groups of a row are put in an order in which neighbours gather activations from other banks of shared memory.
Division "stream" gives every block the same number of pieces, but for half a row, and every warp of a block the same;
"slice" gives every warp the same number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..group_checks import check
from ..group_spec import GroupSpec
from ..groups import (
    DenseGroups,
    Groups,
    Weight,
    pack_dense,
    places,
    unpack_dense,
    zero_points,
)
from ..packing import packed_bytes, unpacked_bytes

WARP = 32
BANKS = {16: 8, 8: 16}
"""Gathers that shared memory answers at a time, by the bits of activations: 16 or 8 bytes each."""
ALIGNMENT = 256
DIVISIONS = ("stream", "slice")


def piece_of(spec: GroupSpec) -> int:
    """Columns of a piece: a group, or 16 bytes of a large one."""
    return min(spec.size, 128 // spec.bits)


@dataclass(frozen=True)
class Layout:
    """The sections of weights of one shape for a grid of `blocks` of `warps`. dense: every group exists."""

    spec: GroupSpec
    dense: bool
    blocks: int
    warps: int
    division: str = "stream"

    @property
    def piece(self) -> int:
        """Columns of a piece."""
        return piece_of(self.spec)

    @property
    def pieces(self) -> int:
        """Pieces of a group."""
        return self.spec.size // self.piece

    @property
    def zero_mode(self) -> int:
        """ZERO of kernel.cu."""
        if self.spec.symmetric:
            return 0
        return 1 if self.spec.bits == 4 and self.spec.across <= 1 << 12 else 2

    @cached_property
    def sections(self) -> dict[str, tuple[int, int]]:
        """Where each section begins and how many bytes it has."""
        spec = self.spec
        padded = -(-spec.kept // WARP) * WARP  # whole warps read
        workers = self.blocks * self.warps
        sizes = {
            "values": padded * spec.size * spec.bits // 8,
            "meta": padded * 4,
            "zero": padded * spec.bits // 8 if self.zero_mode == 2 else 0,
            "row_index": 4 * (spec.rows + 1),
            "cuts": 4 * (workers + 1),
            "finished": 4 * (workers + 1),
        }
        out, at = {}, 0
        for name, size in sizes.items():
            out[name] = (at, size)
            at += -(-size // ALIGNMENT) * ALIGNMENT
        return {**out, "all": (0, at)}

    def part(self, prepared: Tensor, name: str) -> Tensor:
        """The bytes of a section."""
        begin, size = self.sections[name]
        return prepared[begin : begin + size]

    def build(self, weight: Weight) -> Tensor:
        """The prepared weight, uint8, where the weight is. ValueError if it is damaged."""
        spec = self.spec
        if isinstance(weight, DenseGroups):
            codes, scale, zero = unpack_dense(weight, spec)
            stored = (codes.short().view(-1, spec.size) + zero.view(-1, 1)).to(torch.uint8)
            values, scale, zero = packed_bytes(stored, spec.bits), scale.flatten(), zero.flatten()
            row_index = torch.arange(spec.rows + 1, dtype=torch.int32, device=scale.device) * spec.across
            index = torch.zeros(spec.kept, dtype=torch.int32, device=scale.device)  # not read
        else:
            check(weight, spec)
            order = self._order(places(weight, spec))
            values, scale, zero = weight.values[order], weight.scale[order], zero_points(weight, spec)[order]
            index, row_index = weight.groups[order].int(), weight.row_index
        prepared = torch.zeros(self.sections["all"][1], dtype=torch.uint8, device=scale.device)
        low = index | (zero.int() << 12 if self.zero_mode == 1 else 0)
        meta = scale.view(torch.int16).int() << 16 | low
        cuts, finished = self._cuts(row_index)
        filled = {"values": values, "meta": meta, "row_index": row_index, "cuts": cuts, "finished": finished}
        if self.zero_mode == 2:
            filled["zero"] = packed_bytes(zero, spec.bits)
        for name, tensor in filled.items():
            self.part(prepared, name)[: tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
        return prepared

    def weight(self, prepared: Tensor) -> Weight:
        """What `build` was given, to the bit."""
        spec = self.spec
        values = self.part(prepared, "values").view(-1, spec.size * spec.bits // 8)[: spec.kept]
        meta = self.part(prepared, "meta").view(torch.int32)[: spec.kept]
        scale = (meta >> 16).short().view(torch.bfloat16)
        zero = (meta >> 12 & 15).to(torch.uint8) if self.zero_mode == 1 else None
        if self.zero_mode == 2:
            zero = unpacked_bytes(self.part(prepared, "zero"), spec.bits)[: spec.kept]
        if self.dense:
            small = (spec.rows, spec.across)
            stored = unpacked_bytes(values, spec.bits).view(*small, spec.size)
            zeros = torch.full(small, spec.middle, dtype=torch.uint8, device=prepared.device)
            zeros = zeros if zero is None else zero.view(small)
            codes = (stored.short() - zeros[..., None]).to(spec.codes_dtype).flatten(1)
            return pack_dense(codes, scale.view(small), zeros, spec)
        row_index = self.part(prepared, "row_index").view(torch.int32)
        index = meta & (0xFFF if self.zero_mode == 1 else 0xFFFF)
        rows = torch.arange(spec.rows, device=prepared.device).repeat_interleave(row_index.diff().long())
        order = (rows * spec.across + index).argsort()
        packed = None if zero is None else packed_bytes(zero[order], spec.bits)
        return Groups(row_index.clone(), index[order].short(), values[order], scale[order], packed)

    def _order(self, there: Tensor) -> Tensor:
        """there [n]: row * K/G + index -> the order of groups: rows stay together, and within each the banks of the
        activations take turns as long as they have groups."""
        across, banks = self.spec.across, max(1, BANKS[self.spec.activation_bits] // self.pieces)
        row, bank = there // across, there % across % banks
        kind = row * banks + bank
        first = kind.argsort(stable=True)
        counts = kind.bincount(minlength=self.spec.rows * banks)
        begins = counts.cumsum(0) - counts
        turn = torch.empty_like(there)
        turn[first] = torch.arange(len(there), device=there.device) - begins[kind[first]]
        return ((row * across + turn) * banks + bank).argsort()

    def _cuts(self, row_index: Tensor) -> tuple[Tensor, Tensor]:
        starts = row_index.long() * self.pieces
        total = self.spec.kept * self.pieces
        workers = torch.arange(self.blocks * self.warps + 1, device=starts.device)
        if self.division == "slice":
            cuts = starts[self.spec.rows * workers // (self.blocks * self.warps)]
        else:
            blocks = total * torch.arange(self.blocks + 1, device=starts.device) // self.blocks
            # Blocks begin where rows do: half a row more or less costs a fraction of completing cut rows in a second
            # kernel.
            above = torch.searchsorted(starts, blocks).clamp(min=1)
            high, low = starts[above], starts[above - 1]
            blocks = torch.where(high - blocks <= blocks - low, high, low)
            blocks[0], blocks[-1] = 0, total
            block, warp = workers // self.warps, workers % self.warps
            begin, end = blocks[block], blocks[(block + 1).clamp(max=self.blocks)]
            inner = (begin + (end - begin) * warp // self.warps + WARP // 2) // WARP * WARP
            cuts = torch.where(warp == 0, begin, torch.maximum(begin, torch.minimum(inner, end)))
        finished = torch.searchsorted(starts[1:].contiguous(), cuts, right=True)
        finished[0] = 0  # rows without groups before all others are the first warp's
        return cuts.int(), finished.int()
