"""Linears whose weights have a scale for every group of columns: their tensors, weight, text and share of a rank.

groups.py describes both layouts. A rank has some rows of a column-parallel linear and the groups of its columns of a
row-parallel one; groups are never cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .groups import DenseGroups, Groups, kept_groups, pack, pack_dense, unpack, unpack_dense
from .packing import WORD
from .spec import LinearSpec, Part, TensorSpecs, check_tensors, stack

SIZES = (4, 8, 16, 32, 64, 128)
BITS = (4, 8)
LAYOUTS = ("gqs", "dense")
MOST_ACROSS = 1 << 15
"""Groups of a row that int16 can name."""


@dataclass(frozen=True)
class GroupSpec(LinearSpec):
    """A linear of N = rows, K = columns, G = size, b = bits.

    kept: n, the groups that the pattern keeps; layout dense stores the others too, as zeros. symmetric: whether the
    zero point is always the middle code. activation_bits: 16 for floating point as they come, 8 for INT8 with a scale
    per token.

    ValueError if there is no such linear.
    """

    kind = "group"
    plain = False

    rows: int
    columns: int
    size: int
    bits: int
    kept: int
    symmetric: bool
    activation_bits: int = 16
    layout: str = "gqs"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}, known: {', '.join(LAYOUTS)}")
        for name, value, known in (
            ("size", self.size, SIZES), ("bits", self.bits, BITS), ("activation_bits", self.activation_bits, (16, 8))
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{self}: {name} is {value}, known: {', '.join(map(str, known))}")
        if self.columns % self.size or not 0 < self.across <= MOST_ACROSS or self.rows < 1:
            raise ValueError(
                f"{self}: {self.columns} columns must be 1 to {MOST_ACROSS} groups of {self.size}, and a row at least"
            )
        if not 0 <= self.kept <= self.whole:
            raise ValueError(f"{self}: {self.kept} groups kept of {self.whole}")

    @property
    def across(self) -> int:
        """K/G, the groups of a row if all exist."""
        return self.columns // self.size

    @property
    def whole(self) -> int:
        """The groups of the linear if all exist."""
        return self.rows * self.across

    @property
    def middle(self) -> int:
        """The zero point of symmetric weights, and of absent groups."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest stored code."""
        return (1 << self.bits) - 1

    @property
    def codes_dtype(self) -> torch.dtype:
        """Of the codes in memory: differences of two stored ones."""
        return torch.int8 if self.bits == 4 else torch.int16

    @property
    def pattern(self) -> str:
        return f"1x{self.size}"

    @property
    def text(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        numbers = (self.rows, self.columns, self.size, self.bits, self.kept, kind, self.activation_bits)
        return " ".join([self.kind, *map(str, numbers), self.layout])

    @classmethod
    def from_words(cls, words: Sequence[str]) -> GroupSpec:
        *numbers, symmetric, activation_bits, layout = words
        rows, columns, size, bits, kept = map(int, numbers)
        return cls(rows, columns, size, bits, kept, symmetric == "symmetric", int(activation_bits), layout)

    def tensors(self, layout: str | None = None) -> TensorSpecs:
        """Of its own layout, unless another is given."""
        n, across = self.kept, self.across
        if (layout or self.layout) == "gqs":
            out: TensorSpecs = {
                "weight_row_index": ((self.rows + 1,), torch.int32),
                "weight_groups": ((n,), torch.int16),
                "weight_values": ((n, self.size * self.bits // 8), torch.uint8),
                "weight_scale": ((n,), torch.bfloat16),
            }
            zero: tuple[tuple[int, ...], torch.dtype] = ((-(-n * self.bits // 8),), torch.uint8)
        else:
            out = {
                "weight_packed": ((self.rows, -(-self.columns * self.bits // WORD)), torch.int32),
                "weight_scale": ((self.rows, across), torch.bfloat16),
                "weight_shape": ((2,), torch.int64),
            }
            zero = ((-(-self.rows * self.bits // WORD), across), torch.int32)
        return out if self.symmetric else {**out, "weight_zero_point": zero}

    def weight(self, named: Mapping[str, Tensor]) -> Groups | DenseGroups:
        """The rest of what may be damaged is found when a backend prepares the weight."""
        check_tensors(self, named)
        if self.layout == "gqs":
            return Groups.of(named)
        weight = DenseGroups.of(named)
        if self.kept < self.whole:
            kept_groups(unpack_dense(weight, self)[0], self)
        return weight

    def resized(self, rows: int, columns: int) -> GroupSpec:
        return replace(self, rows=rows, columns=columns, kept=rows * columns // self.size)

    def random(self, device: torch.device) -> Groups | DenseGroups:
        small = (self.rows, self.across)
        keep = torch.zeros(self.whole, dtype=torch.bool, device=device)
        keep[torch.randperm(self.whole, device=device)[: self.kept]] = True
        keep = keep.view(small)
        stored = torch.randint(self.largest + 1, (*small, self.size), dtype=torch.int16, device=device)
        codes = ((stored - self.middle) * keep[..., None]).to(self.codes_dtype).flatten(1)
        scale = torch.ones(small, dtype=torch.bfloat16, device=device)
        zero = torch.full(small, self.middle, dtype=torch.uint8, device=device)
        return pack(codes, scale, zero, keep, self) if self.layout == "gqs" else pack_dense(codes, scale, zero, self)

    def misfit(self, columns: slice) -> tuple[str, str] | None:
        if columns.start % self.size == 0 and columns.stop % self.size == 0:
            return None
        fits = [str(size) for size in SIZES if columns.start % size == 0 and columns.stop % size == 0]
        other = f"convert this layer in groups of {', '.join(fits)}" if fits else "convert this layer to another scheme"
        return f"no multiple of its group size {self.size}", other

    def cut(self, named: Mapping[str, Tensor], rows: slice, columns: slice) -> Part:
        """codes [n, k]; scale, zero and keep [n, k / G]; of columns that fit. Also ValueError if more groups than the
        pattern keeps are not zero."""
        if self.layout == "gqs":
            codes, scale, zero, keep = unpack(Groups.of(named), self)
        else:
            codes, scale, zero = unpack_dense(DenseGroups.of(named), self)
            keep = kept_groups(codes, self)
        across = slice(columns.start // self.size, columns.stop // self.size)
        small = {"scale": scale, "zero": zero, "keep": keep}
        return {
            "codes": codes[rows, columns].contiguous(),
            **{name: tensor[rows, across].contiguous() for name, tensor in small.items()},
        }

    def join(self, parts: Sequence[Part]) -> tuple[GroupSpec, Groups | DenseGroups]:
        """Block sparse rows where groups are absent, pack-quantized where none is: both layouts of a checkpoint give
        the same bytes, and so the same results."""
        whole = stack(parts)
        codes, scale, zero, keep = (whole[name] for name in ("codes", "scale", "zero", "keep"))
        kept = int(keep.sum())
        layout = "dense" if kept == keep.numel() else "gqs"
        spec = replace(self, rows=codes.shape[0], columns=codes.shape[1], kept=kept, layout=layout)
        if layout == "dense":
            return spec, pack_dense(codes, scale, zero, spec)
        return spec, pack(codes, scale, zero, keep, spec)

    def stored_bytes(self, layout: str | None = None) -> int:
        """Of all tensors of its own layout, unless another is given."""
        total = 0
        for shape, dtype in self.tensors(layout).values():
            total += torch.Size(shape).numel() * dtype.itemsize
        return total

    def __str__(self) -> str:
        absent = 0 if self.layout == "dense" else 1 - self.kept * self.size / max(1, self.rows * self.columns)
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.rows}x{self.columns} W{self.bits}A{self.activation_bits} g{self.size} {kind} S{absent:.1%}"
