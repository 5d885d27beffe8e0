"""Magnitude pruning against its twin, the law of ties and zeros, and the check that refuses what breaks a pattern."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from slideconvert.core.patterns import LENGTHS, BlockPattern
from slideconvert.core.select import apply_mask
from slideconvert.errors import InputError, PatternError
from slideconvert.kernels import planes
from slideconvert.prune import METHODS, magnitude, parse_method
from tests.helpers.matrices import LENGTH, as_dtype, codes_on, examples, legal_codes, masks, raw
from tests.twins import prune, quantize

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.int8, torch.float8_e4m3fn]
MINUS_ZERO = {torch.float32: -(2**31), torch.float16: -(2**15), torch.bfloat16: -(2**15), torch.float8_e4m3fn: -128}
"""The bits of -0 as an integer of the same width."""


def numbers(weight: Tensor) -> NDArray[np.float64]:
    """What the weights stand for, exactly; FP8 decoded by the twin."""
    if weight.dtype == torch.float8_e4m3fn:
        decoded = np.array([quantize.e4m3_value(byte) for byte in range(256)])
        return decoded[raw(weight).view(np.uint8)]
    return weight.double().numpy()


def random_weight(dtype: torch.dtype, rows: int, columns: int, seed: int = 0) -> Tensor:
    """All kinds of numbers that `dtype` has: of every size, or every finite code; with zeros of both signs."""
    rng = np.random.default_rng(seed)
    if dtype == torch.int8:
        return torch.from_numpy(rng.integers(-128, 128, (rows, columns), dtype=np.int8))
    if dtype == torch.float8_e4m3fn:
        chosen = rng.choice(np.array(quantize.FINITE, dtype=np.uint8), (rows, columns))
        return torch.from_numpy(chosen).view(dtype)
    sizes = 10.0 ** rng.integers(-7, 5, (rows, 1))  # down to float16's subnormals
    values = rng.normal(size=(rows, columns)) * sizes * (rng.random((rows, columns)) > 0.1)
    return torch.from_numpy(values).to(dtype)


def assert_pruned_like_the_twin(weight: Tensor, length: int) -> None:
    expected = prune.magnitude(numbers(weight), length)
    np.testing.assert_array_equal(magnitude(weight, BlockPattern(length)).numpy(), expected)


# ---- which weights go


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_magnitude_equals_the_twin_for_rows_of_every_remainder(dtype: torch.dtype, length: int) -> None:
    for remainder in range(length):
        assert_pruned_like_the_twin(random_weight(dtype, 5, 2 * length + remainder, seed=remainder), length)


@pytest.mark.parametrize("dtype", DTYPES)
@examples(30)
@given(length=LENGTH, rows=st.integers(1, 4), columns=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_magnitude_equals_the_twin_where_most_weights_tie(
    dtype: torch.dtype, length: int, rows: int, columns: int, seed: int
) -> None:
    small = torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (rows, columns)))
    assert_pruned_like_the_twin(small.to(dtype), length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_of_equal_weights_the_lower_columns_go(dtype: torch.dtype, length: int) -> None:
    sign = torch.tensor([1, -1] * (length // 2)).repeat(3, 2)
    keep = magnitude((3 * sign).to(dtype), BlockPattern(length))
    assert keep.tolist() == [([False] * 2 + [True] * (length - 2)) * 2] * 3


@pytest.mark.parametrize(
    ("row", "gone"),
    [
        ([3, 1, 0, 2, 1, 0, 4, 5], [2, 5]),  # zeros before anything else
        ([3, 1, 0, 2, 1, 9, 4, 5], [1, 2]),  # then the smallest, the left one of two
        ([3, 2, 2, 2, 1, 9, 4, 5], [1, 4]),
        ([0, 1, 0, 2, 0, 0, 4, 5], [0, 2]),  # of many zeros the left two
        ([7, 1, -1, 2, 1, 9, 4, 5], [1, 2]),
        ([9, 8, 7, 6, 5, 4, 3, 2], [6, 7]),
        ([-9, -8, -7, -6, -5, -4, -3, -2], [6, 7]),  # |w|, not w
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_of_one_group_by_hand(dtype: torch.dtype, row: list[int], gone: list[int]) -> None:
    keep = magnitude(torch.tensor([row]).to(dtype), BlockPattern(8))
    assert [column for column, kept in enumerate(keep[0].tolist()) if not kept] == gone


@pytest.mark.parametrize("dtype", MINUS_ZERO)
def test_zeros_of_both_signs_are_the_same_zero(dtype: torch.dtype) -> None:
    weight = torch.tensor([[3, -0.0, 1, 0, 2, 5, -0.0, 4], [3, 0, 1, 1, 2, 5, -0.0, 4]]).to(dtype)
    assert (raw(weight) == MINUS_ZERO[dtype]).sum() == 3
    keep = magnitude(weight, BlockPattern(8))
    assert (~keep).nonzero().tolist() == [[0, 1], [0, 3], [1, 1], [1, 6]]


@pytest.mark.parametrize("length", LENGTHS)
def test_missing_columns_of_the_last_group_are_zeros(length: int) -> None:
    """A tail that lacks one column loses one weight, a shorter one none; the full group before it always two."""
    lost = {}
    for tail in range(length):
        keep = magnitude(torch.ones(1, length + tail), BlockPattern(length))
        lost[tail] = (int((~keep[:, :length]).sum()), int((~keep[:, length:]).sum()))
    assert lost == {tail: (2, 1 if tail == length - 1 else 0) for tail in range(length)}


@examples(60)
@given(length=LENGTH, rows=st.integers(1, 4), groups=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_exactly_two_of_every_full_group_go(length: int, rows: int, groups: int, seed: int) -> None:
    weight = random_weight(torch.bfloat16, rows, groups * length, seed)
    gone = ~magnitude(weight, BlockPattern(length)).view(rows, groups, length)
    assert gone.sum(dim=2).unique().tolist() == [2]


def test_pruning_again_takes_nothing_more() -> None:
    pattern, weight = BlockPattern(10), random_weight(torch.float32, 20, 67)
    once = apply_mask(weight, magnitude(weight, pattern))
    assert torch.equal(apply_mask(once, magnitude(once, pattern)), once)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_inf_keeps_everything(dtype: torch.dtype) -> None:
    assert magnitude(torch.zeros(3, 7).to(dtype), BlockPattern(None)).all()


def test_scores_may_be_infinite_and_zeros_of_either_sign() -> None:
    """A method's scores are products: an infinite one stays, and -0 is no less than 0."""
    keep = BlockPattern(4).select(torch.tensor([[float("inf"), 1, float("inf"), 2], [0, 0, -0.0, 1]]))
    assert keep.tolist() == [[True, False, True, False], [False, False, True, True]]


@pytest.mark.parametrize("block", [1, 40, 100])
def test_blocks_of_rows_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, weight = BlockPattern(8), random_weight(torch.bfloat16, 9, 37)
    keep = magnitude(weight, pattern)
    pruned = apply_mask(weight, keep)
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    assert torch.equal(magnitude(weight, pattern), keep)
    assert torch.equal(apply_mask(weight, keep), pruned)


# ---- the pruned weights


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_gives_plain_zeros_and_keeps_every_other_bit(dtype: torch.dtype) -> None:
    weight = random_weight(dtype, 8, 40)
    if dtype in MINUS_ZERO:
        weight[0, :] = torch.tensor(-0.0).to(dtype)
    keep = torch.rand(8, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    before, after = raw(weight), raw(apply_mask(weight, keep))
    minus_zero = before == MINUS_ZERO.get(dtype, 0)
    np.testing.assert_array_equal(after, np.where(keep.numpy() & ~minus_zero, before, 0))
    assert (before[~keep.numpy()] < 0).any()  # a product with the mask would leave -0 there


# ---- the check


@pytest.mark.parametrize("length", [4, 6, 8, 10])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bfloat16])
def test_check_passes_exactly_the_legal_masks(length: int, dtype: torch.dtype) -> None:
    pattern = BlockPattern(length)
    pattern.check(as_dtype(codes_on(masks(length, legal=True)), dtype), "w")
    for mask in masks(length, legal=False):
        with pytest.raises(PatternError):
            pattern.check(as_dtype(codes_on(mask[None]), dtype), "w")


@examples(60)
@given(data=st.data(), length=LENGTH)
def test_check_passes_legal_rows_of_any_length(data: st.DataObject, length: int) -> None:
    BlockPattern(length).check(torch.from_numpy(data.draw(legal_codes(length))), "w")


def test_check_passes_everything_for_two_inf() -> None:
    BlockPattern(None).check(torch.ones(2, 9), "w")


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_check_names_place_and_count(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    weight = torch.zeros(5, 27)
    weight[3, 8:16] = 1
    weight[3, 9] = -0.0  # still seven
    with pytest.raises(PatternError) as error:
        BlockPattern(8).check(weight, "layers.1.o_proj")
    assert error.value.what == (
        "layers.1.o_proj: row 3, columns 8 … 15 hold 7 non-zeros, 2:8 allows 6 (2 zeros in 8); "
        "1 such blocks in these rows"
    )
    assert error.value.hint


def test_check_names_the_columns_of_a_ragged_tail_that_exist() -> None:
    weight = torch.ones(1, 15)
    weight[0, :2] = 0
    with pytest.raises(PatternError, match=re.escape("row 0, columns 8 … 14 hold 7 non-zeros, 2:8 allows 6")):
        BlockPattern(8).check(weight, "w")
    BlockPattern(8).check(weight[:, :14], "w")


@pytest.mark.parametrize("dtype", MINUS_ZERO)
def test_check_takes_minus_zero_for_a_zero(dtype: torch.dtype) -> None:
    BlockPattern(4).check(torch.tensor([[-0.0, 1, -0.0, 1]]).to(dtype), "w")


# ---- methods by name


def test_methods() -> None:
    assert tuple(METHODS) == (
        "magnitude", "wanda", "hessian", "obs", "alps", "gqsa", "saliency", "rtn", "gptq"
    )  # fmt: skip
    assert [name for name, method in METHODS.items() if method.whole_groups] == ["gqsa", "saliency"]
    assert METHODS["magnitude"].mask is magnitude
    assert [parse_method(name) for name in METHODS] == list(METHODS)
    with pytest.raises(InputError, match=r"unknown method 'magnitud' \(did you mean magnitude\?"):
        parse_method("magnitud")
