"""What a tensor-parallel rank reads of a packed linear, against packing its columns from the dense weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from slideconvert.core.patterns import ALL, BlockPattern
from slideconvert.kernels.windows import slide_and_pack
from slideconvert.runtime.shards import Shard
from tests.helpers.matrices import as_dtype, codes_on

RANKS = (1, 2, 3, 4, 8)
GROUPS = (1, 2, 3, 4, 5, 7, 11, 16)
"""Of every rank: odd and even numbers of windows, K' with and without padding."""


def weight(pattern: BlockPattern, columns: int, dtype: torch.dtype = torch.int8, rows: int = 5) -> Tensor:
    """Codes [rows, columns] with exactly two zeros, drawn, in every whole group; none in 2:inf."""
    rng = np.random.default_rng(columns)
    order = rng.random((rows, -(-columns // pattern.block), pattern.block)).argsort(-1)
    mask = (order >= 2).reshape(rows, -1)[:, :columns] | (not pattern.prunes)
    return as_dtype(codes_on(mask), dtype)


def same(found: Tensor, expected: Tensor) -> bool:
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(
        found.view(torch.uint8), expected.contiguous().view(torch.uint8)
    )


def read(codes: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """What the rank loads, as tensors of its own: nothing else can leak in."""
    values, meta = slide_and_pack(codes, shard.pattern.length)
    return values[:, shard.values].clone(), meta[:, shard.meta].clone()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=["int8", "fp8"])
@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_every_rank_gets_its_columns_packed(pattern: BlockPattern, dtype: torch.dtype) -> None:
    for ranks in RANKS:
        for groups in GROUPS:
            codes = weight(pattern, ranks * groups * pattern.block, dtype)
            for rank in range(ranks):
                shard = Shard.of_rank(pattern, codes.shape[1], rank, ranks)
                mine, loaded = codes[:, shard.start : shard.stop], read(codes, shard)
                assert shard.aligned and shard.width == groups * pattern.block
                for found, expected in zip(shard.cut(*loaded), slide_and_pack(mine, pattern.length), strict=True):
                    assert same(found, expected), (ranks, groups, rank)
                assert same(shard.dense(*loaded), mine)


@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_columns_that_cut_groups_come_out_dense(pattern: BlockPattern) -> None:
    """Every K up to seven groups and every number of ranks that divides it, whole groups or not."""
    unaligned = 0
    for columns in range(pattern.block, 7 * pattern.block + 1):
        codes = weight(pattern, columns)
        for ranks in (ranks for ranks in RANKS if columns % ranks == 0):
            for rank in range(ranks):
                shard = Shard.of_rank(pattern, columns, rank, ranks)
                unaligned += not shard.aligned
                assert same(shard.dense(*read(codes, shard)), codes[:, shard.start : shard.stop]), (columns, ranks)
    assert unaligned > 20


@pytest.mark.parametrize("pattern", ALL, ids=str)
def test_one_rank_reads_every_byte(pattern: BlockPattern) -> None:
    """Ragged rows and padding included, so that damage anywhere is seen."""
    for columns in range(pattern.block, 3 * pattern.block + 1):
        values, meta = slide_and_pack(weight(pattern, columns), pattern.length)
        shard = Shard.of_rank(pattern, columns, 0, 1)
        assert shard.aligned
        assert same(values[:, shard.values], values) and same(meta[:, shard.meta], meta)
        for found, expected in zip(shard.cut(values, meta), (values, meta), strict=True):
            assert same(found, expected)


def test_ranks_read_no_more_than_their_windows() -> None:
    """The example of shards.py: 2:8, K = 48, the second of two ranks."""
    shard = Shard.of_rank(BlockPattern(8), 48, 1, 2)
    assert (shard.windows, shard.values, shard.meta) == ((9, 18), slice(18, 36), slice(4, 9))


def test_wider_tensors_are_cut_to_size() -> None:
    """Fused linears of several patterns lie in one tensor, as wide as the widest of them."""
    pattern = BlockPattern(6)
    codes = weight(pattern, 24)
    for rank in (0, 1):
        shard = Shard.of_rank(pattern, 24, rank, 2)
        wide = [torch.nn.functional.pad(part, (0, 9), value=1) for part in read(codes, shard)]
        assert same(shard.dense(*wide), codes[:, shard.start : shard.stop])


def test_damaged_metadata_is_refused_in_every_window() -> None:
    pattern = BlockPattern(16)
    shard = Shard.of_rank(pattern, 48, 1, 3)
    assert shard.windows[0] % 2
    values, meta = read(weight(pattern, 48), shard)
    first, end = shard.windows
    for window in range(first, end):
        damaged = meta.clone()
        damaged[0, window // 2 - first // 2] &= 0xF0 if window % 2 == 0 else 0x0F
        with pytest.raises(ValueError, match=r"row 0, window .* not ascending and distinct"):
            shard.dense(values, damaged)
