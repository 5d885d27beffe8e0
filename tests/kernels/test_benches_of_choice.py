"""The benches that check the rule on a GPU and ship its tables, on a GPU that is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benches import bench_rule, ship_tables
from slideconvert.api.options import TuneOptions
from slideconvert.api.tuned_linears import linears_of
from slideconvert.api.tuning import measure
from slideconvert.kernels.backends import table
from slideconvert.kernels.backends.choose import TORCH, Settings, choose
from slideconvert.kernels.backends.dense import Dense
from slideconvert.kernels.backends.int_mm import IntMm
from tests.helpers.fake_gpu import CUDA, FewDense, fake_gpu, forget


def times(name: str, tokens: int) -> float:
    return {"few_dense": 0.5, "dense": 1.0, "few_dense:64,dense": 1.03 if tokens == 32 else 0.6}.get(name, 2.0)


OPTIONS = TuneOptions(model="Llama-3.2-1B", pattern="2:8", scheme="int8")


def test_what_was_tuned_is_checked_and_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On another machine of this kind the shipped table then chooses, with nothing measured."""
    linears = linears_of(None, OPTIONS)
    with fake_gpu(monkeypatch, tmp_path, times, FewDense) as clock:
        assert measure(linears, CUDA, TORCH, 10**6, lambda *_: None, clock.now).left == 0
        words = ["--host", "transformers", "--model", "Llama-3.2-1B", "--pattern", "2:8", "--scheme", "int8"]
        shown = CliRunner().invoke(bench_rule.main, [*words, "--out", str(tmp_path / "rule.json")])
        assert shown.exit_code == 0, shown
        assert "on few_dense:64,dense: 1:1.67 2:1.67" in shown.output
        assert "slowest of 60: 0.971" in shown.output and "below 0.98: 4" in shown.output
        forget(monkeypatch)
        [path] = ship_tables.ship(tmp_path / "slidesparse", tmp_path / "shipped")
        assert path.name == "some-gpu-transformers.json"
        monkeypatch.setattr(table, "SHIPPED", tmp_path / "shipped")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        clock.asked.clear()
        assert [choose(spec, CUDA, Settings()).backend.name for spec in linears] == ["few_dense:64,dense"] * 4
        assert not clock.asked
        # What ships is not measured there, and still ships with what is.
        measure(linears_of(None, replace(OPTIONS, pattern="2:6")), CUDA, TORCH, 10**6, lambda *_: None, clock.now)
        assert {name for name, _ in clock.asked} == {"cusparselt"}
        before = table.parse(path.read_bytes()).times
        ship_tables.ship(tmp_path / "another" / "slidesparse", tmp_path / "shipped")
        after = table.parse(path.read_bytes()).times
        assert all(after[linear] == ways for linear, ways in before.items()) and len(after) == len(before) + 4


def test_tables_of_other_kernels_are_not_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with fake_gpu(monkeypatch, tmp_path, times) as clock:
        measure(linears_of(None, OPTIONS), CUDA, TORCH, 20, lambda *_: None, clock.now)
        monkeypatch.setattr(Dense, "operations", ("quantize",))
        [path] = ship_tables.ship(tmp_path / "slidesparse", tmp_path / "shipped")
        found = {way.partition("@")[0] for ways in table.parse(path.read_bytes()).times.values() for way in ways}
        assert found == {"int_mm"}
        monkeypatch.setattr(IntMm, "operations", ("dequant",))
        assert ship_tables.ship(tmp_path / "slidesparse", tmp_path / "other") == []
