"""Sliding, over every mask there is: each non-zero is kept exactly once, no window holds more than two, and products
stay the same; what cannot be slid is refused, and what was slid comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slideconvert.core.patterns import LENGTHS, BlockPattern
from slideconvert.kernels import planes
from slideconvert.kernels.windows import lift_index, slide, unslide
from tests.helpers.matrices import BYTE_DTYPES, as_dtype, codes_on, examples, legal_codes, masks, raw
from tests.twins import slide as twin

ANY_LENGTH = st.sampled_from([*LENGTHS, None])


def group_codes(length: int) -> torch.Tensor:
    """One group per row, under every legal mask of 2:length."""
    return torch.from_numpy(codes_on(masks(length, legal=True)))


# ---- every mask


@pytest.mark.parametrize(
    ("length", "count"), [(4, 11), (6, 57), (8, 247), (10, 1013), (12, 4083), (14, 16369), (16, 65519)]
)
def test_every_legal_mask_equals_the_twin(length: int, count: int) -> None:
    codes = group_codes(length)
    assert len(codes) == count
    np.testing.assert_array_equal(slide(codes, length).numpy(), twin.slide(codes.numpy(), length))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_legal_mask_keeps_each_non_zero_once_and_two_a_window(length: int) -> None:
    codes = group_codes(length)
    slid = slide(codes, length)
    assert (slid.view(len(slid), -1, 4) != 0).sum(dim=2).max() == 2
    padded = torch.nn.functional.pad(codes, (0, slid.shape[1] - length))
    assert torch.equal(slid.sort(dim=1).values, padded.sort(dim=1).values)  # the codes of a row are all different


@pytest.mark.parametrize("length", LENGTHS)
def test_every_legal_mask_gives_the_same_integer_products(length: int) -> None:
    """Column by column: activations that are an identity matrix make the product the weight itself."""
    codes = group_codes(length)
    index = torch.tensor(twin.lift_index(length, length))
    activations = torch.cat([torch.eye(length, dtype=torch.int64), torch.arange(1, length + 1)[None] ** 3])
    lifted = activations[:, index.clamp(min=0)] * (index >= 0)
    slid = slide(codes, length)
    assert torch.equal(lifted @ slid.long().T, activations @ codes.long().T)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_legal_mask_is_restored(length: int) -> None:
    codes = group_codes(length)
    assert torch.equal(unslide(slide(codes, length), length, length), codes)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_illegal_mask_is_refused_by_row_and_columns(length: int) -> None:
    illegal = masks(length, legal=False)
    assert len(illegal) == length + 1
    for mask in illegal:
        rows = np.zeros((4, 2 * length), dtype=bool)
        rows[:, 2:length] = True
        rows[2, length:] = mask
        with pytest.raises(ValueError) as error:
            slide(torch.from_numpy(codes_on(rows)), length)
        found = f"row 2, columns {length} … {2 * length - 1} hold {mask.sum()} non-zeros"
        assert str(error.value).startswith(found)


# ---- rows of several groups


@pytest.mark.parametrize("length", LENGTHS)
@examples(40)
@given(data=st.data())
def test_rows_of_any_length_equal_the_twin_and_come_back(length: int, data: st.DataObject) -> None:
    codes = data.draw(legal_codes(length))
    slid = slide(torch.from_numpy(codes), length)
    np.testing.assert_array_equal(slid.numpy(), twin.slide(codes, length))
    np.testing.assert_array_equal(unslide(slid, codes.shape[1], length).numpy(), codes)


@pytest.mark.parametrize("dtype", BYTE_DTYPES)
@examples(30)
@given(data=st.data(), length=ANY_LENGTH)
def test_bytes_are_moved_and_never_read(dtype: torch.dtype, data: st.DataObject, length: int | None) -> None:
    """All bit patterns but zero travel, NaNs among them."""
    weight = as_dtype(data.draw(legal_codes(length)), dtype)
    slid = slide(weight, length)
    assert slid.dtype == dtype
    np.testing.assert_array_equal(raw(slid), twin.slide(raw(weight), length))
    back = unslide(slid, weight.shape[1], length)
    assert back.dtype == dtype
    np.testing.assert_array_equal(raw(back), raw(weight))


def test_worked_example() -> None:
    slid = slide(torch.tensor([[7, -3, 5, 0, -9, 0, 4, 6]], dtype=torch.int8), 8)
    assert slid.tolist() == [[7, -3, 0, 0, 5, 0, -9, 0, 0, 0, 4, 6] + [0] * 20]


def test_two_inf_gives_every_pair_a_window_and_drops_nothing() -> None:
    dense = torch.arange(1, 8, dtype=torch.int8)[None]
    slid = slide(dense, None)
    assert slid.tolist() == [[1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0, 0, 7, 0, 0, 0] + [0] * 16]
    assert torch.equal(unslide(slid, 7, None), dense)


@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_windows_beyond_the_last_group_stay_empty(length: int | None) -> None:
    pattern = BlockPattern(length)
    columns = pattern.block
    slid = slide(torch.from_numpy(codes_on(np.arange(columns)[None] < pattern.most_nonzeros)), length)
    used = 4 * pattern.windows
    assert slid.shape == (1, pattern.slid_columns(columns)) and slid.shape[1] % 32 == 0
    assert (slid[:, :used] != 0).sum() == pattern.most_nonzeros
    assert slid.shape[1] > used and not slid[:, used:].any()


@pytest.mark.parametrize("block", [1, 50])
def test_blocks_of_rows_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = group_codes(6)
    slid = slide(codes, 6)
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    assert torch.equal(slide(codes, 6), slid)
    assert torch.equal(unslide(slid, 6, 6), codes)
    bad = torch.cat([codes, torch.ones(1, 6, dtype=torch.int8)])
    with pytest.raises(ValueError, match=f"row {len(codes)}, columns 0 … 5 hold 6 non-zeros"):
        slide(bad, 6)


# ---- the activations' gather


def test_lift_index_by_hand() -> None:
    assert lift_index(8, 8).tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7] + [-1] * 20
    assert lift_index(11, 8).tolist() == (
        [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7] + [8, 9, 10, -1, 10, -1, -1, -1, -1, -1, -1, -1] + [-1] * 8
    )
    assert lift_index(5, None).tolist() == [0, 1, -1, -1, 2, 3, -1, -1, 4, -1, -1, -1] + [-1] * 20


@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_lift_index_equals_the_twin_and_reaches_every_column(length: int | None) -> None:
    for columns in (length or 2, 32, 47, 100):
        index = lift_index(columns, length)
        assert index.dtype == torch.int64 and index.tolist() == twin.lift_index(length, columns)
        assert set(index.tolist()) - {-1} == set(range(columns))


@pytest.mark.parametrize("length", LENGTHS)
def test_lift_index_follows_the_published_formula(length: int) -> None:
    """i(o) = (o // 4W) L + (o % 4W // 4) 2 + o % 4."""
    columns, wide = 16 * length, 4 * (length // 2 - 1)
    expected = [o // wide * length + o % wide // 4 * 2 + o % 4 for o in range(16 * wide)]
    assert lift_index(columns, length).tolist() == expected  # 16 groups need no padding


# ---- what is no slid weight


@pytest.mark.parametrize("length", [length for length in LENGTHS if length > 4])
@pytest.mark.parametrize("dtype", BYTE_DTYPES)
def test_unslide_refuses_a_column_in_two_windows(length: int, dtype: torch.dtype) -> None:
    """In every place where two windows overlap, in the second of two groups."""
    pattern = BlockPattern(length)
    for window in range(pattern.windows - 1):
        for lane in (2, 3):
            slid = np.zeros((3, pattern.slid_columns(2 * length)), dtype=np.int8)
            place = 4 * (pattern.windows + window) + lane
            slid[1, [place, place + 2]] = 5, -5  # no sum or difference of them may count as agreement
            with pytest.raises(ValueError, match="two windows hold the same input column, rows 0 … 2"):
                unslide(as_dtype(slid, dtype), 2 * length, length)


@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_unslide_refuses_a_non_zero_wherever_no_column_is(length: int | None) -> None:
    """Empty windows at the end, lanes beyond a ragged row, and lanes 2 and 3 of 2:inf."""
    pattern = BlockPattern(length)
    columns = pattern.block + 1  # ragged
    index = twin.lift_index(length, columns)
    for place, column in enumerate(index):
        slid = torch.zeros(1, len(index), dtype=torch.int8)
        slid[0, place] = -128
        if column >= 0:
            assert unslide(slid, columns, length)[0, column] == -128
        else:
            with pytest.raises(ValueError, match="padding holds a non-zero, rows 0 … 0"):
                unslide(slid, columns, length)


@pytest.mark.parametrize("columns", [0, 32, 63, 96])
def test_unslide_refuses_other_widths(columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} slid columns, 2:8 of 20 has 64"):
        unslide(torch.zeros(1, columns), 20, 8)
