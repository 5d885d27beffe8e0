"""A run beside the published table: theirs, ours, their ratio, and why they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slideconvert.bench.case import DENSE
from slideconvert.bench.page import write_page
from slideconvert.bench.results import Results
from slideconvert.bench.tables import tables
from tests.conftest import Cli
from tests.helpers.bench_results import LINEARS, gpu_like, seconds_of

H100 = {"dense": {64: 298, 1024: 543, 16384: 9160}, "2:4": {64: 2.94, 1024: 1.55, 16384: 1.54}}
"""Qwen2.5-7B in appendix B."""


def total(tokens: int, pattern: str, way: str) -> float:
    return sum(seconds_of(rows, columns, tokens, pattern, way) for rows, columns in LINEARS.values())


def hopper(folder: Path, level: str = "kernel") -> Results:
    found = gpu_like(folder, level)
    found.machine["compute_capability"] = "9.0"
    return found


def test_theirs_and_ours_stand_side_by_side(cli: Cli, tmp_path: Path) -> None:
    hopper(tmp_path).save()
    told = json.loads(cli("bench", "compare", tmp_path, "published", "--json").out)
    assert (told["gpu"], told["device"], told["baseline"]) == ("h100", "NVIDIA H200", "torch")
    by = {(line["tokens"], line["pattern"]): line for line in told["lines"]}
    assert {tokens for tokens, _ in by} == {64, 1024, 16384}  # published from 64 on; one and 16 are ours alone
    assert {pattern for _, pattern in by} == {"2:4", "2:6", "2:8", "2:inf"}
    for tokens in (64, 1024, 16384):
        line, ours = by[tokens, "2:4"], total(tokens, "2:4", "few_sparse" if tokens == 64 else "many_sparse")
        dense = total(tokens, DENSE, "int_mm")
        assert line["theirs_speedup"] == pytest.approx(H100["2:4"][tokens])
        assert line["theirs_dense"] == H100["dense"][tokens] and line["ours_dense"] == pytest.approx(dense)
        assert line["ours_speedup"] == pytest.approx(dense / ours)
        assert line["ratio"] == pytest.approx(H100["dense"][tokens] / H100["2:4"][tokens] / ours)
    assert (by[64, "2:4"]["note"], by[1024, "2:4"]["note"]) == ("above the bound", "")
    assert any("4 of 12 published speed-ups exceed L / (L - 2)" in note for note in told["notes"])
    shown = cli("bench", "compare", tmp_path, "published").out
    assert "2.94 -> 2.57" in shown and "arXiv 2603.05232" in shown and "NVIDIA H200" in shown
    assert "bench layer" not in shown


def test_another_gpu_can_be_named_and_has_gaps_of_its_own(cli: Cli, tmp_path: Path) -> None:
    """A100: nothing of Qwen2.5-7B at 2:16 and 2:inf. Ours: a kernel that fails, one that was not measured."""
    found = hopper(tmp_path, "layer")
    for key, row in list(found.rows.items()):
        if row.case.linear == "o_proj" and row.case.tokens == 1024 and row.case.pattern == "2:6":
            found.rows[key] = replace(row, times=None, failure="it crashed")
        if row.case.linear == "o_proj" and row.case.tokens == 1024 and row.case.pattern == "2:8":
            del found.rows[key]
    found.save()
    told = json.loads(cli("bench", "compare", tmp_path, "published:A100", "--json").out)
    notes = {(line["tokens"], line["pattern"]): line["note"] for line in told["lines"]}
    assert told["gpu"] == "a100" and notes[1024, "2:inf"] == "not published"
    assert notes[1024, "2:6"] == "ours failed: it crashed" and notes[1024, "2:8"] == "ours was not measured"
    gap = next(line for line in told["lines"] if line["note"] == "not published")
    assert (gap["theirs"], gap["ratio"]) == (None, None) and gap["ours"] > 0
    assert "ours failed: it crashed" in told["notes"] and any("bench layer" in note for note in told["notes"])
    assert any(note.startswith("a100, Qwen2.5-7B: 2:16 and 2:inf") for note in told["notes"])


def test_the_page_of_a_run_shows_them(tmp_path: Path) -> None:
    found = hopper(tmp_path)
    write_page(found, tables(found.rows.values()))
    page = (tmp_path / "index.html").read_text()
    assert "Qwen2.5-7B beside the published h100" in page and "2.94 · 2.57</td>" in page and "298 · 158</td>" in page
    del found.machine["compute_capability"]
    write_page(found, tables(found.rows.values()))
    assert "published h100" not in (tmp_path / "index.html").read_text()


def test_what_cannot_be_compared_is_refused(cli: Cli, tmp_path: Path) -> None:
    cpu = gpu_like(tmp_path / "cpu", "kernel", device="a CPU")
    cpu.save()
    refused = cli("bench", "compare", tmp_path / "cpu", "published")
    assert refused.code == 2 and "no GPU of its architecture" in refused.err and "published:h100" in refused.err
    assert cli("bench", "compare", tmp_path / "cpu", "published:gb10").code == 0
    assert "did you mean a100" in cli("bench", "compare", tmp_path / "cpu", "published:a10").err
    few = hopper(tmp_path / "few")
    few.rows = {key: row for key, row in few.rows.items() if row.case.tokens < 64}
    few.save()
    refused = cli("bench", "compare", tmp_path / "few", "published")
    assert refused.code == 2 and "nothing that was published for h100" in refused.err
    served = Results(tmp_path / "served", "serve", {"device": "NVIDIA H200", "compute_capability": "9.0"})
    served.save()
    assert "of bench serve" in cli("bench", "compare", tmp_path / "served", "published").err
