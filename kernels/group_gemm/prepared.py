"""The form in which kernel.cu reads a grouped weight, made once from the tensors of a checkpoint.

The weight is cut into chunks of 32 rows (a slab) and 256 columns (a unit); weights.cuh describes one. A piece is a
group, or 16 columns of a larger one: what a lane multiplies. Which pieces exist is a bit of a mask for each, so those
that do lie together without an index. Groups of 128 are stored as two of 64 with the same numbers.

    chunks   uint8 [bytes]          the chunks, slab after slab, each beginning at a multiple of 16
    offsets  int32 [chunks + 1]     where each begins, in 16 bytes
    factor   float32 [slabs * 32]   a power of two for every row that brings its largest scale to 2^14 … 2^15
    room     uint8 [0, bytes]       nothing, as wide as the largest chunk: known without asking the device
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..group_checks import check
from ..group_spec import GroupSpec
from ..groups import DenseGroups, Groups, Weight, pack_dense, places, unpack_dense, zero_points
from ..packing import packed_bytes, unpacked_bytes

SLAB = 32
"""Rows of a chunk."""
UNIT = 256
"""Columns of a chunk."""
LANES = 32
HEADER = 16
"""Bytes before the masks of a chunk; the first four: where its groups begin."""
ALIGNMENT = 16
ROOM_MULTIPLE = 128
LARGEST_GROUP = 64
"""Columns that one lane of each of four takes at a time."""
LARGEST_EXPONENT = 14
"""Of a row's largest scale times its factor: as float16, with all smaller ones."""

Prepared = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the prepared weight of a linear. Of layout dense, every group exists."""

    spec: GroupSpec

    @property
    def dense(self) -> bool:
        return self.spec.layout == "dense"

    @property
    def size(self) -> int:
        """Columns of a group as it is stored."""
        return min(self.spec.size, LARGEST_GROUP)

    @property
    def piece(self) -> int:
        """Columns of a piece."""
        return min(self.spec.size, 16)

    @property
    def share(self) -> int:
        """SHARE of kernel.cu."""
        return (self.size // self.piece).bit_length() - 1

    @property
    def placed(self) -> bool:
        """PLACED of weights.cuh: whether the number of a group has room for where it is."""
        return self.piece == 16

    @property
    def zero_bit(self) -> int:
        """Of the number of a group that holds its place: where its zero point is."""
        return 16 - self.spec.bits

    @property
    def piece_bytes(self) -> int:
        return self.piece * self.spec.bits // 8

    @property
    def masks(self) -> int:
        """Masks of a chunk."""
        return UNIT // self.piece

    @property
    def pieces_at(self) -> int:
        """Bytes of a chunk before its pieces."""
        return HEADER + 4 * self.masks

    @property
    def slabs(self) -> int:
        return -(-self.spec.rows // SLAB)

    @property
    def units(self) -> int:
        return -(-self.spec.columns // UNIT)

    @property
    def together(self) -> int:
        """Codes of a piece that are stored even columns first, then odd ones."""
        return 8 if self.spec.bits == 4 and self.piece >= 8 else 4

    def build(self, weight: Weight) -> tuple[Tensor, ...]:
        """The prepared weight, where the weight is. ValueError if it is damaged."""
        stored = _Stored.of(weight, self)
        number, order = self._numbers(stored.place).sort()
        values, group = stored.values[order], stored.group[order]
        device, width = number.device, self.masks * LANES
        counts = (number // width).bincount(minlength=self.slabs * self.units) << self.share
        before = counts.cumsum(0) - counts  # pieces, of chunks before
        groups_at = self.pieces_at + _rounded(counts * self.piece_bytes, 4)
        sizes = _rounded(groups_at + (counts >> self.share) * 4, ALIGNMENT)
        begins = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        chunks = torch.zeros(int(begins[-1]), dtype=torch.uint8, device=device)
        words = chunks.view(torch.int32)
        words[begins[:-1] // 4] = groups_at.int()
        if self.placed:
            step = number // (4 * LANES) % 4 + number // width * 4
            steps = (step.bincount(minlength=4 * self.slabs * self.units) << self.share).view(-1, 4).cumsum(1).int()
            for i in range(3):
                words[begins[:-1] // 4 + 1 + i] = steps[:, i]
        pieces = (number[:, None] + torch.arange(1 << self.share, device=device)).flatten()
        masks = torch.zeros(self.slabs * self.units * self.masks, dtype=torch.int64, device=device)
        masks.scatter_add_(0, pieces // LANES, 1 << pieces % LANES)
        at = (begins[:-1, None] + HEADER) // 4 + torch.arange(self.masks, device=device)
        words[at.flatten()] = _signed(masks)
        chunk = pieces // width
        rank = torch.arange(len(pieces), device=device) - before[chunk]
        wide = self.piece_bytes
        chunks.view(-1, wide)[(begins[chunk] + self.pieces_at) // wide + rank] = values.view(-1, wide)
        chunk = number // width
        rank = torch.arange(len(number), device=device) - (before[chunk] >> self.share)
        words[(begins[chunk] + groups_at[chunk]) // 4 + rank] = self._place(group, number)
        room = _rounded(int(sizes.max()), ROOM_MULTIPLE)
        return (
            chunks,
            (begins // ALIGNMENT).int(),
            self._factor(stored),
            torch.empty(0, room, dtype=torch.uint8, device=device),
        )

    def weight(self, prepared: Prepared) -> Weight:
        """What `build` was given, to the bit."""
        chunks, offsets, _, _ = prepared
        spec, device, width = self.spec, chunks.device, self.masks * LANES
        words, begins = chunks.view(torch.int32), offsets[:-1].long() * ALIGNMENT
        at = (begins[:, None] + HEADER) // 4 + torch.arange(self.masks, device=device)
        bits = words[at.flatten()][:, None] >> torch.arange(LANES, device=device) & 1
        pieces = bits.flatten().nonzero().squeeze(1)
        chunk = pieces // width
        counts = chunk.bincount(minlength=len(begins))
        rank = torch.arange(len(pieces), device=device) - (counts.cumsum(0) - counts)[chunk]
        wide = self.piece_bytes
        values = chunks.view(-1, wide)[(begins[chunk] + self.pieces_at) // wide + rank]
        number, chunk = pieces[:: 1 << self.share], chunk[:: 1 << self.share]
        groups_at = begins + words[begins // 4]
        group = words[groups_at[chunk] // 4 + (rank[:: 1 << self.share] >> self.share)]
        group = (group & -65536 | (group & 65535) >> self.zero_bit) if self.placed else group
        place, order = self._places(number).sort()
        halves = spec.size // self.size
        values = self.in_order(values.view(len(number), wide << self.share)[order], back=True)
        values = values.view(-1, spec.size * spec.bits // 8)
        place, group = place[::halves] // halves, group[order][::halves]
        return _Stored(place, values, group).weight(spec)

    def _place(self, group: Tensor, number: Tensor) -> Tensor:
        """group [n] int32 -> the same with the place of each in its chunk, if it has room for it."""
        if not self.placed:
            return group
        lane, mask = number % LANES, number // LANES % self.masks
        if self.spec.bits == 4:
            place = lane // 4 << 2 | lane % 4 << 5 | mask // 4 << 7 | mask % 4 << 9
        else:
            place = lane // 4 << 1 | lane % 4 << 4 | mask % 4 << 6
        return group & -65536 | (group & 65535) << self.zero_bit | place.int()

    def _numbers(self, place: Tensor) -> Tensor:
        """place [n]: row * stored groups of a row + group -> chunk * lanes of masks + lane of the first piece."""
        across = self.spec.columns // self.size
        row, piece = place // across, place % across << self.share
        unit, piece = piece // self.masks, piece % self.masks
        chunk = row // SLAB * self.units + unit
        mask = piece // 4 * 4 + row % SLAB // 8
        return (chunk * self.masks + mask) * LANES + row % 8 * 4 + piece % 4

    def _places(self, number: Tensor) -> Tensor:
        """The inverse of `_numbers`."""
        lane, mask = number % LANES, number // LANES % self.masks
        chunk = number // (LANES * self.masks)
        row = chunk // self.units * SLAB + mask % 4 * 8 + lane // 4
        piece = chunk % self.units * self.masks + mask // 4 * 4 + lane % 4
        return row * (self.spec.columns // self.size) + (piece >> self.share)

    def in_order(self, values: Tensor, *, back: bool = False) -> Tensor:
        """Packed codes [n, B], of the columns in order or (back) as chunks have them -> the other."""
        many = self.together
        codes = unpacked_bytes(values, self.spec.bits)
        split = codes.view(len(codes), codes.shape[1] // many, *((2, many // 2) if back else (many // 2, 2)))
        return packed_bytes(split.transpose(-1, -2).reshape(codes.shape), self.spec.bits)

    def _factor(self, stored: _Stored) -> Tensor:
        """[slabs * 32] float32."""
        scale = (stored.group >> 16).short().view(torch.bfloat16).float().abs()
        row = stored.place // (self.spec.columns // self.size)
        largest = scale.new_zeros(self.slabs * SLAB).scatter_reduce_(0, row, scale, "amax")
        exponent = (LARGEST_EXPONENT + 1 - largest.frexp()[1]).clamp(max=126).masked_fill_(largest == 0, 0)
        return (exponent.int() + 127 << 23).view(torch.float32)


@dataclass(frozen=True)
class _Stored:
    """Groups in the order of a checkpoint. place [n] int64: row * groups of a row + group. values [n, B] uint8. group
    [n] int32: scale << 16 | zero point."""

    place: Tensor
    values: Tensor
    group: Tensor

    @classmethod
    def of(cls, weight: Weight, layout: Layout) -> _Stored:
        """As chunks store them: groups of 128 as two, codes in the order of pieces. ValueError for damage."""
        spec = layout.spec
        if isinstance(weight, DenseGroups):
            codes, scale, zero = unpack_dense(weight, spec)
            stored = (codes.short().view(-1, spec.size) + zero.view(-1, 1)).to(torch.uint8)
            place = torch.arange(spec.whole, device=scale.device)
            values, scale, zero = packed_bytes(stored, spec.bits), scale.flatten(), zero.flatten()
        else:
            check(weight, spec)
            place, values, scale, zero = places(weight, spec), weight.values, weight.scale, zero_points(weight, spec)
        halves = spec.size // layout.size
        place = (place[:, None] * halves + torch.arange(halves, device=place.device)).flatten()
        group = (scale.view(torch.int16).int() << 16 | zero.int()).repeat_interleave(halves)
        return cls(place, layout.in_order(values.reshape(len(group), layout.size * spec.bits // 8)), group)

    def weight(self, spec: GroupSpec) -> Weight:
        scale, zero = (self.group >> 16).short().view(torch.bfloat16), (self.group & 0xFF).to(torch.uint8)
        if spec.layout == "dense":
            small = (spec.rows, spec.across)
            stored = unpacked_bytes(self.values, spec.bits).view(*small, spec.size)
            codes = (stored.short() - zero.view(small)[..., None]).to(spec.codes_dtype).flatten(1)
            return pack_dense(codes, scale.view(small), zero.view(small), spec)
        counts = (self.place // spec.across).bincount(minlength=spec.rows)
        row_index = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        packed = None if spec.symmetric else packed_bytes(zero, spec.bits)
        return Groups(row_index, (self.place % spec.across).short(), self.values, scale, packed)


def _rounded(number, multiple: int):  # type: ignore[no-untyped-def]
    """Up to a multiple."""
    return (number + multiple - 1) // multiple * multiple


def _signed(words: Tensor) -> Tensor:
    """Words of 32 bits in int64 -> int32."""
    return (words - (words >> 31 << 32)).int()
