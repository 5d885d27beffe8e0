"""w4a16, w4a8 and w8a16: integer codes with one bfloat16 scale and zero point per group of weights of a row.

s = (max - min) / (2^bits - 1) with min <= 0 <= max, zero point = round(-min / s), both over the weights of the group
that are kept (GQSA, equations 1 to 3; zero is made representable): a stored code c means (c - zero) * s, so that zero
is exact. The scale is rounded up to bfloat16 first, so that the range always covers the group and |w - code * scale| <=
scale / 2. Codes in memory are those stored minus the zero point: the weight is code * scale in every scheme, and zero
is code 0. Symmetric groups have the zero point in the middle, which is therefore not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ..quantize import Grid
from .base import Scheme

GROUP_SIZES = (4, 8, 16, 32, 64, 128)
"""Weights that may share a scale."""
GROUP = 128
"""How many do by default: what is usual for 4 bits."""


def fitting_sizes(columns: int) -> str:
    """The hint where groups do not divide rows of so many columns."""
    fits = [str(size) for size in GROUP_SIZES if columns % size == 0]
    return f"use a group size of {', '.join(fits)}" if fits else "keep this linear (keep: true)"


@dataclass(frozen=True)
class GroupScheme(Scheme):
    """One scale, and one zero point if they are not symmetric, per group of weights."""

    rows_independent: ClassVar[bool] = False
    ct_type: ClassVar[str] = "int"
    ct_format: ClassVar[str] = "pack-quantized"
    scale_unit: ClassVar[str] = "group"

    group: int = GROUP

    def in_groups(self, size: int, *, symmetric: bool) -> GroupScheme:
        """The scheme with groups of another size, with or without zero points. InputError for unsupported sizes."""
        if size not in GROUP_SIZES:
            raise InputError(
                f"group size {size} is not supported", hint=f"use one of {', '.join(map(str, GROUP_SIZES))}"
            )
        return replace(self, group=size, symmetric=symmetric)

    def resized(self, group: int | None, symmetric: bool | None, where: str) -> Scheme:
        return self.in_groups(group or GROUP, symmetric=bool(symmetric))

    def check_whole_groups(self, size: int, where: str) -> None:
        if self.group != size:
            raise InputError(
                f"{where}: groups of {size} are pruned, those of {self.name} have {self.group} weights",
                hint=f"use a group size of {self.group}",
            )

    def for_whole_groups(self, size: int, symmetric: bool | None, where: str) -> Scheme:
        return self.resized(size, symmetric, where)

    def check_ternary(self, where: str) -> None:
        raise InputError(
            f"{where}: its weights are ternary, and {self.name} has a scale for every group",
            hint="use int8 or fp8, or codes: full",
        )

    def check_columns(self, columns: int, where: str) -> None:
        if columns % self.group:
            raise InputError(
                f"{where}: {columns} input columns are no multiple of the group size {self.group}",
                hint=fitting_sizes(columns),
            )

    def grid(self, weight: Tensor) -> Grid:
        """weight [out, in] float -> scale and zero point of each group, from its extremes.

        Groups of zeros get scale 1 and the zero point in the middle. Symmetric: the larger of max / (2^(bits - 1) - 1)
        and -min / 2^(bits - 1), so that no code of the range is left out.
        """
        groups = weight.float().unflatten(1, (-1, self.group))
        low, high = groups.amin(2).clamp_(max=0), groups.amax(2).clamp_(min=0)
        if self.symmetric:
            above, below = (torch.full_like(high, most) for most in (self.middle - 1, self.middle))
            scale = torch.maximum(high / above, -low / below)
        else:
            scale = (high - low) / torch.full_like(high, self.top)
        empty = high == low
        scale = torch.where(empty, torch.ones_like(scale), scale.clamp_(min=torch.finfo(torch.float32).tiny))
        scale = _up_to_bfloat16(scale)
        if self.symmetric:
            return Grid(self, scale)
        zero = (-low / scale.float()).round_().clamp_(0, self.top)
        return Grid(self, scale, torch.where(empty, torch.full_like(zero, self.middle), zero).to(torch.uint8))

    def to_codes(self, scaled: Tensor, zero: Tensor | None = None) -> Tensor:
        assert zero is not None
        return scaled.round_().maximum(-zero).minimum(self.top - zero).to(self.torch_dtype)

    def by_column(self, values: Tensor, columns: int) -> Tensor:
        return values.repeat_interleave(self.group, 1)

    def by_visit(self, values: Tensor, order: Tensor) -> Tensor:
        return values.T[order // self.group]

    def multiply(self, codes: Tensor, scale: Tensor) -> Tensor:
        weight: Tensor = codes.unflatten(1, (-1, self.group)).mul_(scale[..., None]).flatten(1)
        return weight

    def described(self, fields: Mapping[str, Any]) -> Scheme:
        return self.in_groups(int(fields["group_size"]), symmetric=bool(fields["symmetric"]))

    @property
    def label(self) -> str:
        return f"{self.name} g{self.group}" + (" symmetric" if self.symmetric else "")

    def describe(self) -> dict[str, Any]:
        return {"group_size": self.group, "symmetric": self.symmetric}

    def _ct_weights(self) -> dict[str, Any]:
        return {"symmetric": self.symmetric, "strategy": "group", "group_size": self.group}


def _up_to_bfloat16(positive: Tensor) -> Tensor:
    """The smallest bfloat16 that is not below a positive normal float32."""
    nearest = positive.to(torch.bfloat16)
    short = (nearest.float() < positive).to(torch.int16)
    return (nearest.view(torch.int16) + short).view(torch.bfloat16)  # the next bits are the next number
