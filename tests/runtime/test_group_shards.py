"""What a tensor-parallel rank holds of grouped linears, against slices of the whole weight; and fused ones as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slideconvert.kernels.groups import (
    BITS,
    DenseGroups,
    Groups,
    GroupSpec,
    Weight,
    canonical,
    decode,
    kept_groups,
    pack,
    pack_dense,
)
from slideconvert.runtime.group_shards import cut, join
from tests.unit.test_groups import random_weight

SPEC = GroupSpec(24, 16 * 6, 16, 4, 0, False)


def both(spec: GroupSpec, share: float = 0.4, seed: int = 0) -> tuple[GroupSpec, Groups, DenseGroups]:
    """A random linear of which some kept groups are zero, as conversions leave them, in both layouts."""
    spec, codes, scale, zero, keep = random_weight(spec, share, seed)
    codes.view(spec.rows, spec.across, spec.size)[:2, :3] = 0
    spec = replace(spec, kept=min(spec.whole, int(keep.sum()) + 5))
    scale, canonical_zero = canonical(codes, scale, zero, spec)
    assert canonical_zero is not None
    keep = kept_groups(codes, spec)
    whole = replace(spec, kept=spec.whole)
    return spec, pack(codes, scale, canonical_zero, keep, spec), pack_dense(codes, scale, canonical_zero, whole)


def floats(weight: Weight, spec: GroupSpec) -> Tensor:
    codes, scale = decode(weight, spec)
    return codes.double() * scale.double().repeat_interleave(spec.size, 1)


def same(one: Weight, other: Weight) -> bool:
    first, second = one.named(), other.named()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


EVERY_ROW, EVERY_COLUMN = slice(0, SPEC.rows), slice(0, SPEC.columns)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_ranks_hold_slices_of_the_weight_alike_from_both_layouts(bits: int, symmetric: bool) -> None:
    spec, gqs, dense = both(replace(SPEC, bits=bits, symmetric=symmetric))
    whole = floats(gqs, spec)
    for ranks in (1, 2, 3):
        kept = []
        for rank in range(ranks):
            rows = slice(rank * spec.rows // ranks, (rank + 1) * spec.rows // ranks)
            columns = slice(rank * spec.columns // ranks, (rank + 1) * spec.columns // ranks)
            for place in ((rows, EVERY_COLUMN), (EVERY_ROW, columns)):
                own, weight = join([cut(gqs, spec, *place)], spec)
                assert torch.equal(floats(weight, own), whole[place])
                again, other = join([cut(dense, spec, *place)], spec)
                assert own == again and same(weight, other) and isinstance(weight, Groups)
            kept.append(own.kept)
        assert sum(kept) == spec.kept and (ranks < 3 or len(set(kept)) > 1)  # some ranks have more than others


def test_fused_linears_keep_the_groups_that_each_has_alone() -> None:
    """Of groups of zeros the first are kept, of every linear by itself."""
    linears = [both(replace(SPEC, rows=rows), seed=rows) for rows in (24, 16, 9)]
    whole = torch.cat([floats(gqs, spec) for spec, gqs, _ in linears])
    joined = []
    for number in (1, 2):
        pieces = [cut(one[number], one[0], slice(0, one[0].rows), EVERY_COLUMN) for one in linears]  # type: ignore[arg-type]
        joined.append(join(pieces, linears[0][0]))
    (spec, weight), (other_spec, other) = joined
    assert spec == other_spec and same(weight, other)
    assert spec.rows == 49 and spec.kept == sum(one[0].kept for one in linears)
    assert torch.equal(floats(weight, spec), whole)


def test_without_absent_groups_it_is_pack_quantized() -> None:
    spec, gqs, dense = both(SPEC, share=2.0)
    assert spec.kept == spec.whole
    for weight in (gqs, dense):
        own, joined = join([cut(weight, spec, EVERY_ROW, EVERY_COLUMN)], spec)
        assert own == spec and same(joined, dense)


def test_damage_is_refused() -> None:
    spec, gqs, dense = both(SPEC)
    with pytest.raises(ValueError, match="must ascend within a row"):
        cut(replace(gqs, groups=gqs.groups.flip(0)), spec, EVERY_ROW, EVERY_COLUMN)
    with pytest.raises(ValueError, match=r"groups are not zero, 3 may be"):
        cut(dense, replace(spec, kept=3), EVERY_ROW, EVERY_COLUMN)
