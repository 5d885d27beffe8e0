"""Checks of weights quantized by groups: of codes before they are packed, of both layouts before they are unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .spec import check_tensor
from .spec import check_tensors as check_named

if TYPE_CHECKING:
    from .group_spec import GroupSpec
    from .groups import Groups, Weight


def check(groups: Groups, spec: GroupSpec) -> None:
    """ValueError for tensors that no such linear has: shapes, dtypes, rows that do not follow one another, groups
    beyond the row, twice or out of order, scales that are no numbers, bits in the padding."""
    check_tensors(groups, spec)
    starts, index = groups.row_index, groups.groups
    if int(starts[0]) != 0 or int(starts[-1]) != spec.kept:
        raise ValueError(
            f"{spec}: weight_row_index goes from {int(starts[0])} to {int(starts[-1])}, not from 0 to {spec.kept}"
        )
    falls = starts.diff() < 0
    if falls.any():
        row = int(falls.nonzero()[0])
        raise ValueError(
            f"{spec}: weight_row_index falls from {int(starts[row])} to {int(starts[row + 1])} at row {row}"
        )
    outside = (index < 0) | (index >= spec.across)
    if outside.any():
        place = int(outside.nonzero()[0])
        raise ValueError(f"{spec}: weight_groups[{place}] is {int(index[place])}, a row has {spec.across} groups")
    descends = index.diff() <= 0
    descends[starts[(starts > 0) & (starts < spec.kept)].long() - 1] = False
    if descends.any():
        place = int(descends.nonzero()[0])
        pair = f"{int(index[place])} then {int(index[place + 1])}"
        raise ValueError(f"{spec}: weight_groups has {pair} at {place}, they must ascend within a row")
    if groups.zero is not None and spec.bits == 4 and spec.kept % 2 and int(groups.zero[-1]) > spec.largest:
        raise ValueError(f"{spec}: weight_zero_point has {int(groups.zero[-1]) >> 4} in the nibble of padding")


def check_codes(codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor | None, spec: GroupSpec) -> None:
    small = (spec.rows, spec.across)
    expected = [("codes", codes, (spec.rows, spec.columns), spec.codes_dtype), ("scale", scale, small, torch.bfloat16)]
    if zero is not None:
        expected.append(("zero", zero, small, torch.uint8))
    elif not spec.symmetric:
        raise ValueError(f"{spec}: no zero points, and they are not symmetric")
    if keep is not None:
        expected.append(("keep", keep, small, torch.bool))
    for name, tensor, shape, dtype in expected:
        check_tensor(spec, name, tensor, shape, dtype)


def check_tensors(weight: Weight, spec: GroupSpec) -> None:
    named = weight.named()
    check_named(spec, named, spec.tensors(weight.layout))
    if not named["weight_scale"].isfinite().all():
        raise ValueError(
            f"{spec}: weight_scale has {int((~named['weight_scale'].isfinite()).sum())} that are not finite"
        )
