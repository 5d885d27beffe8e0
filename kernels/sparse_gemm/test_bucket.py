"""Rounding up numbers of tokens: needs no GPU."""

from __future__ import annotations

from slideconvert.kernels.sparse_gemm.kernel import bucket


def test_buckets_hold_their_tokens_and_waste_at_most_an_eighth() -> None:
    found = [bucket(tokens) for tokens in range(1, 40_000)]
    for tokens, rows in enumerate(found, 1):
        assert rows >= tokens and rows % 16 == 0
        assert rows - tokens < max(16, tokens / 8)
        assert bucket(rows) == rows
    assert sorted(found) == found and len(set(found[:16384])) == 64
