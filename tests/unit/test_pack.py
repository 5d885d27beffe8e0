"""The stored bytes of 2:4 windows: pinned literally, compared with the twin, damaged, and read back."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slideconvert.core.patterns import LENGTHS
from slideconvert.kernels import planes
from slideconvert.kernels.windows import pack, slide, slide_and_pack, unpack
from tests.helpers.matrices import BYTE_DTYPES, as_dtype, codes_on, examples, legal_codes, masks, raw
from tests.twins import pack as twin
from tests.twins import slide as slide_twin

ANY_LENGTH = st.sampled_from([*LENGTHS, None])
LEGAL_NIBBLES = (0b01_00, 0b10_00, 0b11_00, 0b10_01, 0b11_01, 0b11_10)
"""Six of sixteen: a window's two positions, the higher one first, ascending and distinct."""


def hex_of(tensor: torch.Tensor) -> str:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes().hex(" ")


def int8(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int8)


# ---- golden bytes


def test_bytes_of_two_windows() -> None:
    """The second example of windows.py: 5 0 -9 0 | 0 0 0 6."""
    values, meta = pack(int8([5, 0, -9, 0, 0, 0, 0, 6]))
    assert (hex_of(values), hex_of(meta)) == ("05 f7 00 06", "c8")


def test_bytes_of_a_row_of_2_8_and_of_an_empty_one() -> None:
    """The first example of windows.py: 7 -3 0 0 | 5 0 -9 0 | 0 0 4 6 | five empty windows."""
    slid = slide(int8([7, -3, 5, 0, -9, 0, 4, 6], [0] * 8), 8)
    values, meta = pack(slid)
    assert values.dtype == torch.int8 and values.shape == (2, 16)
    assert meta.dtype == torch.uint8 and meta.shape == (2, 4)
    assert hex_of(values[0]) == "07 fd 05 f7 04 06" + " 00" * 10
    assert hex_of(meta[0]) == "84 4e 44 44"
    assert hex_of(values[1]) == "00" + " 00" * 15
    assert hex_of(meta[1]) == "44 44 44 44"


def test_bytes_of_fp8_and_bf16_values() -> None:
    window = torch.tensor([[0, 1.5, 0, -448] + [0] * 4])
    values, meta = pack(window.to(torch.float8_e4m3fn))
    assert (values.dtype, hex_of(values), hex_of(meta)) == (torch.float8_e4m3fn, "3c fe 00 00", "4d")
    values, meta = pack(window.bfloat16())
    assert (values.dtype, hex_of(values), hex_of(meta)) == (torch.bfloat16, "c0 3f e0 c3 00 00 00 00", "4d")


@pytest.mark.parametrize(
    ("window", "pair", "positions"),
    [
        ([0, 0, 0, 0], [0, 0], (0, 1)),
        ([1, 0, 0, 0], [1, 0], (0, 1)),
        ([0, 2, 0, 0], [0, 2], (0, 1)),
        ([0, 0, 3, 0], [0, 3], (0, 2)),
        ([0, 0, 0, 4], [0, 4], (0, 3)),
        ([1, 2, 0, 0], [1, 2], (0, 1)),
        ([1, 0, 3, 0], [1, 3], (0, 2)),
        ([1, 0, 0, 4], [1, 4], (0, 3)),
        ([0, 2, 3, 0], [2, 3], (1, 2)),
        ([0, 2, 0, 4], [2, 4], (1, 3)),
        ([0, 0, 3, 4], [3, 4], (2, 3)),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_legal_window_has_one_form(
    window: list[int], pair: list[int], positions: tuple[int, int], sign: int
) -> None:
    """Free places go to the lowest free lanes, with value 0; in the first and in the second half of a byte."""
    values, meta = pack(sign * int8([*window, 0, 0, 0, 0], [0, 0, 0, 0, *window]))
    signed = [sign * value for value in pair]
    nibble = positions[0] | positions[1] << 2
    assert values.tolist() == [[*signed, 0, 0], [0, 0, *signed]]
    assert meta.tolist() == [[nibble | 4 << 4], [4 | nibble << 4]]


# ---- against the twin, and back


@pytest.mark.parametrize("dtype", BYTE_DTYPES)
@examples(40)
@given(data=st.data(), length=ANY_LENGTH)
def test_packing_equals_the_twin_and_unpacks(dtype: torch.dtype, data: st.DataObject, length: int | None) -> None:
    weight = as_dtype(data.draw(legal_codes(length)), dtype)
    slid = slide(weight, length)
    values, meta = pack(slid)
    expected_values, expected_meta = twin.pack(slide_twin.slide(raw(weight), length))
    np.testing.assert_array_equal(raw(values), expected_values)
    np.testing.assert_array_equal(meta.numpy(), expected_meta)
    np.testing.assert_array_equal(raw(unpack(values, meta)), raw(slid))


@pytest.mark.parametrize("length", LENGTHS[:5])
def test_slide_and_pack_is_pack_of_slide_for_every_mask(length: int) -> None:
    codes = torch.from_numpy(codes_on(masks(length, legal=True)))
    values, meta = slide_and_pack(codes, length)
    expected_values, expected_meta = pack(slide(codes, length))
    assert torch.equal(values, expected_values) and torch.equal(meta, expected_meta)


@pytest.mark.parametrize("dtype", BYTE_DTYPES)
@examples(40)
@given(data=st.data(), length=ANY_LENGTH)
def test_slide_and_pack_is_pack_of_slide(dtype: torch.dtype, data: st.DataObject, length: int | None) -> None:
    weight = as_dtype(data.draw(legal_codes(length)), dtype)
    values, meta = slide_and_pack(weight, length)
    expected_values, expected_meta = pack(slide(weight, length))
    assert values.dtype == dtype
    np.testing.assert_array_equal(raw(values), raw(expected_values))
    np.testing.assert_array_equal(meta.numpy(), expected_meta.numpy())


@pytest.mark.parametrize("length", [*LENGTHS, None])
def test_identity_and_permutations_come_back(length: int | None) -> None:
    """One non-zero a row: the place of every column, alone."""
    columns = 2 * (length or 8) + 1
    identity = 77 * torch.eye(columns, dtype=torch.int8)
    index = torch.tensor(slide_twin.lift_index(length, columns))
    for matrix in (identity, identity.flip(1), identity[torch.arange(columns) * 5 % columns]):
        slid = unpack(*slide_and_pack(matrix, length))
        assert int((slid != 0).sum()) == columns
        row, place = slid.nonzero(as_tuple=True)
        assert torch.equal(matrix[row, index[place]], slid[row, place])


@pytest.mark.parametrize("block", [1, 100])
def test_blocks_of_rows_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.from_numpy(codes_on(masks(8, legal=True)))
    slid = slide(codes, 8)
    values, meta = pack(slid)
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    for found_values, found_meta in (pack(slid), slide_and_pack(codes, 8)):
        assert torch.equal(found_values, values) and torch.equal(found_meta, meta)
    assert torch.equal(unpack(values, meta), slid)


# ---- what is refused


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("window", [w for count in (3, 4) for w in combinations(range(4), count)])
def test_more_than_two_non_zeros_cannot_be_packed(
    window: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    slid = torch.zeros(6, 32, dtype=torch.int8)
    slid[4, [12 + lane for lane in window]] = -128
    with pytest.raises(ValueError) as error:
        pack(slid)
    assert str(error.value) == f"row 4, slid columns 12 … 15 hold {len(window)} non-zeros, a window takes 2"


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_slide_and_pack_names_the_row_that_breaks_the_pattern(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    codes = torch.zeros(5, 16, dtype=torch.int8)
    codes[3, 8:15] = 1
    with pytest.raises(ValueError, match="row 3, columns 8 … 15 hold 7 non-zeros"):
        slide_and_pack(codes, 8)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("nibble", range(16))
def test_every_nibble_is_read_or_refused(nibble: int, half: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(planes.BLOCK_WEIGHTS, "cpu", block)
    meta = torch.full((3, 2), 0xE4, dtype=torch.uint8)  # lanes 0, 1 of even windows, 2, 3 of odd ones
    meta[2, 1] = nibble << 4 | 4 if half else 0xE0 | nibble
    values = int8(*[[1, 2, 3, 4, 5, 6, 7, 8]] * 3)
    if nibble in LEGAL_NIBBLES:
        slid = unpack(values, meta)
        assert slid.tolist() == twin.unpack(values.numpy(), meta.numpy()).tolist()
    else:
        with pytest.raises(ValueError) as error:
            unpack(values, meta)
        assert str(error.value) == (
            f"row 2, window {2 + half}: positions {nibble & 3} and {nibble >> 2} are not ascending and distinct"
        )


@pytest.mark.parametrize(
    ("values", "meta", "dtype"),
    [((2, 16), (2, 3), torch.uint8), ((2, 16), (3, 4), torch.uint8), ((2, 16), (2, 4), torch.int8)],
)
def test_parts_that_do_not_belong_together(values: tuple[int, int], meta: tuple[int, int], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        unpack(torch.zeros(values, dtype=torch.int8), torch.full(meta, 0x44, dtype=dtype))
