"""Every number that follows from a pattern, against literals (the reference paper's tables), and how patterns are
read."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from slideconvert.core.patterns import ALL, LENGTHS, BlockPattern
from slideconvert.errors import InputError, PatternError

NAMES = ["2:4", "2:6", "2:8", "2:10", "2:12", "2:14", "2:16", "2:inf"]

DERIVED = {
    # name: columns of a group, windows of a group, non-zeros it may keep, pruned %, K'/K, ideal speed-up
    "2:4": (4, 1, 2, 50.0, 1.0, 2.0),
    "2:6": (6, 2, 4, 33.3, 1.333, 1.5),
    "2:8": (8, 3, 6, 25.0, 1.5, 1.333),
    "2:10": (10, 4, 8, 20.0, 1.6, 1.25),
    "2:12": (12, 5, 10, 16.7, 1.667, 1.2),
    "2:14": (14, 6, 12, 14.3, 1.714, 1.167),
    "2:16": (16, 7, 14, 12.5, 1.75, 1.143),
    "2:inf": (2, 1, 2, 0.0, 2.0, 1.0),
}

SLID_COLUMNS = {
    # input columns of real models: K' of 2:6, 2:8, 2:10, as the authors of SlideSparse publish them
    2048: (2752, 3072, 3296),
    2560: (3424, 3840, 4096),
    3072: (4096, 4608, 4928),
    3584: (4800, 5376, 5760),
    5120: (6848, 7680, 8192),
    6912: (9216, 10368, 11072),
    8192: (10944, 12288, 13120),
    13824: (18432, 20736, 22144),
    18944: (25280, 28416, 30336),
}


def test_the_table_covers_every_pattern_in_order() -> None:
    assert [str(pattern) for pattern in ALL] == NAMES == list(DERIVED)
    assert LENGTHS == (4, 6, 8, 10, 12, 14, 16)


@pytest.mark.parametrize("name", NAMES)
def test_derived_numbers(name: str) -> None:
    group, windows, most, pruned_percent, expansion, speedup = DERIVED[name]
    pattern = BlockPattern.parse(name)
    assert (pattern.block, pattern.windows, pattern.most_nonzeros) == (group, windows, most)
    assert round(100 * (1 - pattern.density), 1) == pruned_percent
    assert (round(pattern.expansion, 3), round(pattern.ideal_speedup, 3)) == (expansion, speedup)
    assert pattern.prunes == (name != "2:inf")
    assert pattern.length == (None if name == "2:inf" else group)
    assert (str(pattern), pattern.slug) == (name, name.replace(":", "_"))


@pytest.mark.parametrize("columns", SLID_COLUMNS)
def test_slid_columns_of_real_models(columns: int) -> None:
    found = tuple(BlockPattern.parse(name).slid_columns(columns) for name in ("2:6", "2:8", "2:10"))
    assert found == SLID_COLUMNS[columns]


@pytest.mark.parametrize(
    ("name", "columns", "groups", "slid"),
    [
        ("2:4", 32, 8, 32),  # the hardware's own pattern moves nothing
        ("2:4", 33, 9, 64),
        ("2:8", 8, 1, 32),  # 12 lanes, padded
        ("2:8", 9, 2, 32),
        ("2:8", 64, 8, 96),  # no padding needed
        ("2:8", 65, 9, 128),
        ("2:12", 2048, 171, 3424),
        ("2:14", 2048, 147, 3552),  # the groups' own padding counts: 147 groups, not 2048 / 14 = 146.3
        ("2:16", 2048, 128, 3584),
        ("2:inf", 2048, 1024, 4096),  # K' = 2K
        ("2:inf", 16, 8, 32),
        ("2:inf", 17, 9, 64),
    ],
)
def test_groups_and_slid_columns_of_ragged_rows(name: str, columns: int, groups: int, slid: int) -> None:
    pattern = BlockPattern.parse(name)
    assert (pattern.units(columns), pattern.slid_columns(columns)) == (groups, slid)


@pytest.mark.parametrize("text", ["2:8", "2_8", " 2:8\n", " 2_8 "])
def test_ways_to_write_a_pattern(text: str) -> None:
    assert BlockPattern.parse(text) == BlockPattern(8)


@pytest.mark.parametrize("text", ["2:inf", "2_inf", "2:INF", " 2_Inf "])
def test_ways_to_write_the_pattern_that_prunes_nothing(text: str) -> None:
    assert BlockPattern.parse(text) == BlockPattern(None)


@pytest.mark.parametrize(("text", "nearest"), [("2:7", "2:8"), ("3:8", "2:8"), ("2_in", "2:inf"), ("16", "2:16")])
def test_a_wrong_pattern_is_refused_with_the_nearest_one(text: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {nearest}\?"):
        BlockPattern.parse(text)


@pytest.mark.parametrize("text", ["", "2:2", "2:18", "2:08", "2:-8", "2:8:8", "1:4", "dense"])
def test_what_is_no_pattern_is_refused_and_all_of_them_are_named(text: str) -> None:
    with pytest.raises(InputError) as error:
        BlockPattern.parse(text)
    assert f"unknown pattern '{text}'" in error.value.what
    assert ", ".join(NAMES) in error.value.hint


@pytest.mark.parametrize("length", [-8, 0, 2, 3, 7, 18])
def test_other_lengths_cannot_be_made(length: int) -> None:
    with pytest.raises(PatternError, match=f"pattern 2:{length} is not supported.*2:4, 2:6"):
        BlockPattern(length)


def test_a_pattern_cannot_be_changed_and_serves_as_a_key() -> None:
    with pytest.raises(FrozenInstanceError):
        BlockPattern(8).length = 6  # type: ignore[misc]
    assert {BlockPattern(8): 1}[BlockPattern.parse("2_8")] == 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_must_hold_one_whole_group(name: str) -> None:
    pattern = BlockPattern.parse(name)
    group = DERIVED[name][0]
    pattern.check_shape((1, group), "q_proj")
    with pytest.raises(PatternError) as error:
        pattern.check_shape((1, group - 1), "layers.3.q_proj")
    assert error.value.what == f"layers.3.q_proj: {group - 1} input columns, {name} needs at least {group}"
    assert error.value.hint
