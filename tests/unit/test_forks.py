"""Forks of tests: a child in which torch cannot set its threads is given up, and another one made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.forks import ATTEMPTS, fork


def test_a_child_in_which_torch_fails_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_fails(count: int) -> None:
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise RuntimeError(f"Invalid thread pool! {count}")

    monkeypatch.setattr(torch, "set_num_threads", first_fails)
    pid = fork()
    if not pid:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7 and (tmp_path / "failed").exists()


def test_where_torch_fails_in_every_fork_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(count: int) -> None:
        raise RuntimeError(f"Invalid thread pool! {count}")

    monkeypatch.setattr(torch, "set_num_threads", fails)
    with pytest.raises(RuntimeError, match=f"torch failed in {ATTEMPTS} forks"):
        fork()
