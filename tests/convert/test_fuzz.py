"""Damaged files of all kinds before every command: a result, or one line that names what is wrong.

A case is a seed, so that a failing one can be run again: pytest tests/convert/test_fuzz.py -k SEED.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.helpers import fuzzing

QUICK, MANY = 60, 1500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzzing.write_whole(tmp_path_factory.mktemp("whole"))


def check_case(seed: int, whole: Path, folder: Path, cli: Cli) -> None:
    case = fuzzing.prepare(seed, whole, folder)
    assert not case.fault(*cli(*case.words)), case


@pytest.mark.parametrize("seed", range(QUICK))
def test_damaged_files_are_named(seed: int, whole: Path, tmp_path: Path, cli: Cli) -> None:
    check_case(seed, whole, tmp_path, cli)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, QUICK + MANY))
def test_many_damaged_files_are_named(seed: int, whole: Path, tmp_path: Path, cli: Cli) -> None:
    check_case(seed, whole, tmp_path, cli)
