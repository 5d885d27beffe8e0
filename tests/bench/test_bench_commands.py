"""`slideconvert bench kernel` and `bench layer` on a CPU, and what a run keeps, goes on with and refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slideconvert.api import bench as api
from slideconvert.api.options import BenchOptions
from slideconvert.bench.case import COLUMNS, Times
from slideconvert.bench.suite import LARGEST_ERROR, spread
from slideconvert.bench.weights import random_weight
from slideconvert.errors import OutputError
from slideconvert.kernels.backends.reference import SlideReference
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.linears import default_dtype

WORDS = ("--scheme", "int8,bf16", "--pattern", "2:4,2_8", "--tokens", "1,5", "--device", "cpu")
LINEARS = 4


class Steady:
    """A clock whose times are the bytes of the weight, and each of whose measurements takes a second."""

    def __init__(self) -> None:
        self.elapsed, self.timed = 0.0, 0

    def ceilings(self) -> dict[str, float]:
        return {}

    def alive(self) -> bool:
        return True

    def turns(self, nbytes: int, tokens: int) -> int:
        return 2

    def time(self, call: Callable[[Any], object], written: Tensor, weights: Sequence[Any]) -> Times:
        assert len(weights) == 2
        self.elapsed, self.timed = self.elapsed + 1, self.timed + 1
        taken = float(sum(one.nbytes for one in weights[0]))
        return Times(taken, taken, taken, taken)

    def now(self) -> float:
        return self.elapsed


def options(source: Path, out: Path, **more: Any) -> BenchOptions:
    words: dict[str, Any] = {"scheme": "int8", "pattern": "2:4", "tokens": "1,5", "device": "cpu"}
    return BenchOptions(model=str(source), out=out, **{**words, **more})


@pytest.mark.parametrize("level", ["kernel", "layer"])
def test_a_run_leaves_numbers_a_table_and_a_page(cli: Cli, source: Path, tmp_path: Path, level: str) -> None:
    out = tmp_path / "out"
    told = json.loads(cli("bench", level, "--model", source, *WORDS, "--out", out, "--json").out)
    # int8: dense and two patterns; bf16: dense alone, as its 2:4 products need a GPU.
    assert (told["measured"], told["failed"], told["left"]) == (4 * LINEARS * 2, 0, 0) and not told["failures"]
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == told["measured"] and all(0 < row["error"] <= LARGEST_ERROR for row in rows)
    assert {(row["precision"], row["pattern"], row["way"]) for row in rows} == {
        ("int8", "dense", "int_mm"), ("int8", "2:4", "reference"), ("int8", "2:8", "reference"),
        ("bf16", "dense", "linear"),
    }  # fmt: skip
    assert {(row["linear"], row["rows"], row["columns"]) for row in rows} == {
        ("qkv_proj", 128, 64), ("o_proj", 64, 64), ("gate_up_proj", 176, 64), ("down_proj", 64, 88)
    }  # fmt: skip
    table = list(csv.DictReader((out / "results.csv").open()))
    assert tuple(table[0]) == COLUMNS and len(table) == len(rows)
    [shown] = told["tables"]
    assert shown["shapes"]["down_proj"] == [64, 88] and [row["tokens"] for row in shown["rows"]] == [1, 5]
    first = shown["rows"][0]
    by_pattern = [sum(row["device_us"] for row in rows if row["pattern"] == "2:8" and row["tokens"] == 1)]
    assert first["patterns_us"]["2:8"] == pytest.approx(by_pattern[0])
    assert set(first["speedups"]) == {"dense", "torch", "bf16"}
    assert "<h2>" in (out / "index.html").read_text() and len(list((out / "figures").glob("*.svg"))) == 2
    assert (out / "speed_table.csv").exists() == (level == "layer")


def test_what_was_measured_is_shown_again_and_not_measured_again(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    out = tmp_path / "out"
    words = ("bench", "layer", "--model", source, *WORDS, "--out", out)
    shown = cli(*words)
    assert "32 cases measured, 32 in" in shown.out and "2:8" in shown.out and "bench" in shown.err
    before = pico.files(out)
    again = cli(*words, "-q")
    assert "0 cases measured, 32 in" in again.out and not again.err and pico.files(out) == before


def test_its_speed_table_answers_what_plan_asks(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clock = Steady()
    api.bench_layer(options(source, out, pattern="2:4,2:8"), clock=clock)
    table = out / "speed_table.csv"
    gpu = next(line for line in table.read_text().splitlines() if "int8" in line).split(",")[0]
    words = ("--method", "magnitude", "--pattern", "2:8", "--gpu", gpu, "--speed-table", table, "--tokens", 5)
    told = json.loads(cli("plan", source, *words, "--json").out)
    # Dense codes of 8 bits and a scale a row; windows of 2:8 as bytes, slid: 1.5 times, padded.
    dense = 128 * 64 + 64 * 64 + 176 * 64 + 64 * 88 + 4 * (128 + 64 + 176 + 64)
    slid = 128 * 96 + 64 * 96 + 176 * 96 + 64 * 160 + 4 * (128 + 64 + 176 + 64)
    assert told["expected"]["speedup"] == pytest.approx(dense / slid, abs=1e-3)


def test_a_run_without_time_left_is_finished_later(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, out = Steady(), tmp_path / "out"
    real = api.measure
    monkeypatch.setattr(api, "measure", lambda *args: real(*args, clock.now))
    seen: list[tuple[int, int]] = []
    first = api.bench_kernel(options(source, out, budget=5), lambda _, done, total: seen.append((done, total)), clock)
    assert (first.outcome.measured, first.outcome.left) == (5, 11) and seen[-1] == (5, 16)
    second = api.bench_kernel(options(source, out), clock=clock)
    assert (second.outcome.measured, second.outcome.left) == (11, 0) and clock.timed == 16


def test_what_is_interrupted_is_kept(source: Path, tmp_path: Path) -> None:
    class Interrupted(Steady):
        def time(self, call: Callable[[Any], object], written: Tensor, weights: Sequence[Any]) -> Times:
            if self.timed == 3:
                raise KeyboardInterrupt
            return super().time(call, written, weights)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        api.bench_kernel(options(source, out), clock=Interrupted())
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 3
    assert api.bench_kernel(options(source, out), clock=Steady()).outcome.measured == 13


def test_a_wrong_output_is_not_timed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of one row of a linear is wrong: the last, which is always compared."""
    real = SlideReference.run

    def wrong(self: SlideReference, x: Tensor, prepared: Any, bias: Any) -> Tensor:
        out = real(self, x, prepared, bias)
        if self.spec.rows == 176:
            out[-1, -1] += 10
        return out

    monkeypatch.setattr(SlideReference, "run", wrong)
    found = api.bench_layer(options(source, tmp_path / "out"), clock=Steady())
    failed = [row for row in found.results.rows.values() if row.failure]
    assert found.outcome.failed == len(failed) == 2
    assert {(row.case.linear, row.case.way) for row in failed} == {("gate_up_proj", "reference")}
    assert all(row.failure.startswith("wrong output: relative error") and row.times is None for row in failed)
    assert not any(table.patterns for table in found.tables)  # a sum without one of its linears is none
    assert "wrong output" in (tmp_path / "out" / "index.html").read_text()


def test_a_lost_device_ends_the_run_and_its_case_comes_last(source: Path, tmp_path: Path) -> None:
    class Lost(Steady):
        def alive(self) -> bool:
            return False

        def time(self, call: Callable[[Any], object], written: Tensor, weights: Sequence[Any]) -> Times:
            if self.timed == 3:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return super().time(call, written, weights)

    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"is lost after .*device-side assert triggered .*comes last"):
        api.bench_kernel(options(source, out), clock=Lost())
    rows = [row["failure"] for row in json.loads((out / "results.json").read_text())["rows"]]
    assert [bool(failure) for failure in rows] == [False] * 3 + [True]
    # Three more of the others come before it.
    with pytest.raises(OutputError):
        api.bench_kernel(options(source, out), clock=Lost())
    rows = [row["failure"] for row in json.loads((out / "results.json").read_text())["rows"]]
    assert [bool(failure) for failure in rows] == [False] * 3 + [True] + [False] * 3 + [True]


def test_the_default_dtype_of_vllm_changes_nothing(source: Path, tmp_path: Path) -> None:
    """Its layers want bfloat16 as torch's default, which has no 4095."""
    with default_dtype(torch.bfloat16):
        assert spread(4096, 64, torch.device("cpu"))[-1] == 4095
        assert random_weight(8, 8, "2:4", torch.device("cpu")).dtype == torch.float32
        found = api.bench_kernel(options(source, tmp_path / "out"), clock=Steady())
    assert not found.outcome.failed


@given(count=st.integers(1, 100_000), most=st.integers(1, 100))
def test_indices_are_spread(count: int, most: int) -> None:
    found = spread(count, most, torch.device("cpu")).tolist()
    assert len(set(found)) == len(found) == min(count, most) and found == sorted(found)
    assert found[0] == 0 and (len(found) == 1 or found[-1] == count - 1)


def test_kernels_that_changed_are_measured_anew(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    api.bench_layer(options(source, out), clock=Steady())
    monkeypatch.setattr(SlideReference, "timed_name", classmethod(lambda cls: "reference-2"))
    again = api.bench_layer(options(source, out), clock=Steady())
    assert again.outcome.measured == 8 and len(again.results.rows) == 16


def test_results_of_something_else_are_refused(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("--model", source, *WORDS, "--out", out)
    assert cli("bench", "kernel", *words).code == 0
    other = cli("bench", "layer", *words)
    assert other.code == 2 and "they are of bench kernel" in other.err
    monkeypatch.setattr(api, "machine_of", lambda device: {"device": "another", "torch": torch.__version__})
    other = cli("bench", "kernel", *words)
    assert other.code == 2 and "is another" in other.err and "--out" in other.err
    whole = json.loads((out / "results.json").read_text())
    for damage in ({"schema": 2}, {"rows": [{"model": "a"}]}, {"level": "serve"}, {"machine": 3}, {"ceilings": None}):
        (out / "results.json").write_text(json.dumps({**whole, **damage}))
        refused = cli("bench", "compare", out, out)
        assert refused.code == 2 and str(out / "results.json") in refused.err, (damage, refused)
    (out / "results.json").write_text("{")
    assert cli("bench", "compare", out, out).code == 2 and cli("bench", "compare", tmp_path, out).code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "Llama-9"), "Llama-9"),
        (("--scheme", "int4"), "int4"),
        (("--pattern", "3:8"), "3:8"),
        (("--pattern", "1x16:50%"), "1x16:50%"),
        (("--tokens", "0"), "--tokens 0"),
        (("--square", "many"), "--square many"),
        (("--host", "tgi"), "tgi"),
        (("--device", "tpu"), "tpu"),
    ],
)
def test_unknown_words_are_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    refused = cli("bench", "kernel", "--quick", "--device", "cpu", "--out", tmp_path / "out", *words)
    assert refused.code == 2 and said in refused.err, refused
    assert not (tmp_path / "out").exists()


def test_squares_have_as_many_tokens_as_rows(source: Path, tmp_path: Path) -> None:
    found = api.bench_kernel(options(source, tmp_path / "out", square="32,64"), clock=Steady())
    squares = {row.case for row in found.results.rows.values() if row.case.linear == "square"}
    assert {(case.model, case.rows, case.columns, case.tokens) for case in squares} == {
        ("square-32", 32, 32, 32), ("square-64", 64, 64, 64)
    }  # fmt: skip
    assert {table.model for table in found.tables} == {"source", "square-32", "square-64"}
