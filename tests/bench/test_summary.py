"""The tables of a run as a small CSV file, and the Markdown that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benches.tables import main
from slideconvert.bench.case import DENSE
from slideconvert.bench.results import TABLE
from slideconvert.bench.summary import SUMMARY, read_summary, write_summary
from slideconvert.bench.tables import tables
from slideconvert.errors import InputError
from tests.conftest import Cli
from tests.helpers.bench_results import LINEARS, TOKENS, gpu_like, seconds_of


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    some = tables(found.rows.values())
    found.save(), write_summary(found, some)
    again = read_summary(tmp_path / SUMMARY)
    assert again.facts[0] == "slideconvert bench layer" and "device: NVIDIA H200" in again.facts
    assert [(one.model, one.precision, one.chosen) for one in again.tables] == [
        ("Qwen2.5-7B", "int8", "auto"), ("Qwen2.5-7B", "int8", "best"),
    ]  # fmt: skip
    for before, after in zip(some, again.tables, strict=True):
        assert after.tokens == before.tokens and after.baseline == before.baseline == "stock"
        for pattern in before.patterns:
            for tokens in before.tokens:
                for baseline in before.baselines:
                    kept = after.speedup(pattern, tokens, baseline)
                    assert kept == pytest.approx(before.speedup(pattern, tokens, baseline), rel=1e-3)
    assert (tmp_path / SUMMARY).stat().st_size < 0.05 * (tmp_path / TABLE).stat().st_size


def test_markdown_has_the_baseline_and_what_is_faster(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    write_summary(found, tables(found.rows.values()))
    shown = CliRunner().invoke(main, [str(tmp_path / SUMMARY)]).output
    head, rule, *rows = [line for line in shown.split("int8, layer, best")[1].splitlines() if line.startswith("|")]
    assert (
        head == "| tokens | stock, us | 2:4 | 2:6 | 2:8 | 2:inf |"
        and rule == "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    assert [row.split(" | ")[0] for row in rows] == [f"| {tokens:,}" for tokens in TOKENS]
    total = sum(seconds_of(n, k, 1024, DENSE, "stock") for n, k in LINEARS.values())
    own = sum(seconds_of(n, k, 1024, "2:6", "many_sparse") for n, k in LINEARS.values())
    cells = rows[3].strip("| ").split(" | ")
    assert float(cells[1].replace(",", "")) == pytest.approx(total, rel=1e-3) and cells[3] == f"{total / own:.2f}"
    assert "e+" not in shown and "e+" not in (tmp_path / SUMMARY).read_text().split("\nlevel")[1]
    assert "device: NVIDIA H200" in shown and "torch: 2.11.0" in shown and "copy_bytes" not in shown
    over = CliRunner().invoke(main, [str(tmp_path / SUMMARY), "--over", "bf16"]).output
    assert "| tokens | bf16, us |" in over and "stock" not in over
    assert "|" not in CliRunner().invoke(main, [str(tmp_path / SUMMARY), "--precision", "fp8"]).output


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    found.save(), write_summary(found, tables(found.rows.values()))
    refused = CliRunner().invoke(main, [str(tmp_path / TABLE)])
    assert refused.exit_code == 1 and "other columns: level, model, linear" in refused.output
    assert "is no file" in CliRunner().invoke(main, [str(tmp_path / "none.csv")]).output
    text = (tmp_path / SUMMARY).read_text()
    (tmp_path / SUMMARY).write_text(text.replace(",16384,", ",many,"))
    with pytest.raises(InputError, match="line 5 of the table is damaged"):
        read_summary(tmp_path / SUMMARY)


def test_every_run_leaves_one(cli: Cli, source: Path, tmp_path: Path) -> None:
    words = ("--scheme", "int8", "--pattern", "2:4", "--tokens", "1,5", "--device", "cpu", "--out", tmp_path / "out")
    assert cli("bench", "kernel", "--model", source, *words).code == 0
    [table] = read_summary(tmp_path / "out" / SUMMARY).tables
    assert (table.model, table.tokens) == (source.name, [1, 5]) and table.speedup("2:4", 5, "torch")
