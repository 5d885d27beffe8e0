"""Checkpoints side by side: the numbers of their files and reports, what is measured now, and what does not compare."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import slideconvert
from slideconvert import CompareOptions, EvaluateOptions
from slideconvert.compare.page import render
from tests.conftest import MAGNITUDE, Cli
from tests.convert.test_pages import boxed
from tests.convert.test_report import HOSTILE, Page
from tests.helpers.demo import DOWN_2_6, TEXT, converted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, short_demo: Path) -> Path:
    """Two calibrated checkpoints and one without any text; not to be changed."""
    where = tmp_path_factory.mktemp("compare")
    options = {
        "calibration": str(TEXT.with_name("calibration.jsonl")),
        **{"samples": 8, "length": 64, "method": "wanda", "device": "cpu"},
    }
    for pattern in ("2:8", "2:6"):
        out = where / pattern.replace(":", "of")
        slideconvert.convert(short_demo, out, slideconvert.ConvertOptions(pattern=pattern, **options))
    converted(short_demo, where / "mixed", scheme="int8", pattern="2:8", rules=[DOWN_2_6])
    return where


@pytest.fixture
def told(cli: Cli, folder: Path, short_demo: Path) -> dict[str, Any]:
    """All of them and their source, by the times of a GPU."""
    ckpts = [folder / name for name in ("2of8", "2of6", "mixed")]
    return json.loads(cli("compare", *ckpts, "--baseline", short_demo, "--gpu", "h200", "--json").out)


def test_sizes_are_those_of_the_files(told: dict[str, Any], folder: Path, short_demo: Path) -> None:
    """Counted tensor by tensor, without the package's reader."""
    weights = 0
    for one, path in zip(
        told["checkpoints"], (short_demo, *(folder / n for n in ("2of8", "2of6", "mixed"))), strict=True
    ):
        linear_bytes = 0
        with safe_open(path / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                linear_bytes += tensor.nbytes if "_proj." in name else 0
                weights += tensor.numel() if path == short_demo and "_proj." in name else 0
        assert one["linear_bytes"] == linear_bytes and one["bits_per_weight"] == 8 * linear_bytes / weights
        assert one["weights"] == weights and one["bytes"] <= (path / "model.safetensors").stat().st_size
    source, first, second, mixed = told["checkpoints"]
    assert source["baseline"] and source["patterns"] == {} and source["schemes"] == {"bf16": 14}
    assert (first["patterns"], second["patterns"]) == ({"2:8": 14}, {"2:6": 14}) and first["schemes"] == {"int8": 14}
    assert mixed["patterns"] == {"2:8": 12, "2:6": 2} and mixed["quality"] is None


def test_quality_is_what_the_conversions_reported(told: dict[str, Any], folder: Path) -> None:
    source, *sides, _mixed = told["checkpoints"]
    for one in sides:
        report = json.loads((folder / one["name"] / "report.json").read_text())
        held = report["held_out"]
        assert one["quality"]["kl"] == held["kl"] and one["quality"]["perplexity"] == held["output_perplexity"]
        assert one["layer_errors"] == held["layer_errors"]
        assert source["quality"]["perplexity"] == held["source_perplexity"]
        for layer in told["layers"]:
            errors = [linear["output_error"] for linear in report["layers"] if linear["layer"] == layer["layer"]]
            assert len(errors) == 7
            assert layer["output_error"][one["name"]] == pytest.approx(sum(errors) / 7, rel=1e-12)
            assert layer["output_error"]["mixed"] is None
        by_name = {linear["name"]: linear["output_error"] for linear in report["layers"]}
        assert {linear["name"]: linear["output_error"][one["name"]] for linear in told["linears"]} == by_name
    assert [layer["layer"] for layer in told["layers"]] == [0, 1]
    assert told["notes"] == ["Quality not measured: mixed (measure it: --baseline SOURCE --text FILE)."]


def test_speeds_are_those_of_the_plan(told: dict[str, Any], cli: Cli, short_demo: Path) -> None:
    source, first, second, _ = told["checkpoints"]
    assert source["expected"] is None and (told["gpu"], told["tokens"]) == ("h200", 4096)
    for one, pattern in ((first, "2_8"), (second, "2_6")):
        plan = json.loads(cli("plan", *MAGNITUDE, short_demo, "--pattern", pattern, "--gpu", "h200", "--json").out)
        assert one["expected"]["speedup"] == plan["expected"]["speedup"]
    assert first["expected"] != second["expected"]


def test_with_a_text_it_is_measured_as_eval_measures(folder: Path, short_demo: Path) -> None:
    ckpts = [folder / "2of8", folder / "mixed"]
    how = {"text": str(TEXT), "sequences": 2, "length": 64, "device": "cpu"}
    found = slideconvert.compare(ckpts, CompareOptions(baseline=str(short_demo), **how))
    rows = slideconvert.evaluate([str(one) for one in (short_demo, *ckpts)], EvaluateOptions(**how)).perplexity
    assert rows
    for side, row in zip(found.sides, rows, strict=True):
        assert side.quality and side.quality.on.startswith("2 sequences of 64 tokens of evaluation.jsonl")
        assert side.quality.perplexity == row["perplexity"] and side.quality.source_perplexity == rows[0]["perplexity"]
        assert (side.quality.kl, side.quality.same_top) == (row["kl_mean"], row["same_top"])
    assert found.notes == ()


def test_what_does_not_compare_is_told(cli: Cli, folder: Path, tmp_path: Path) -> None:
    for name in ("2of8", "2of6", "mixed"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "mixed" / "report.json").unlink()
    report = json.loads((tmp_path / "2of6" / "report.json").read_text())
    report["held_out"]["source_perplexity"] *= 1.01
    (tmp_path / "2of6" / "report.json").write_text(json.dumps({**report, "source": "other"}))
    assert cli("relayout", tmp_path / "2of8", tmp_path / "dense", "--layout", "dense", "-q").code == 0
    shown = cli("compare", *(tmp_path / name for name in ("2of8", "2of6", "mixed", "dense"))).out
    shown = " ".join(shown.split())
    assert "Measured on different texts or sources, so KL and perplexity do not compare: 2of8: " in shown
    assert "No report.json: mixed." in shown and "Quality not measured: dense" in shown
    assert (
        "Made from different sources, against which errors are: 2of8, mixed, dense from short; 2of6 from other."
        in shown
    )
    (tmp_path / "2of6" / "report.json").write_text("{}")
    refused = cli("compare", tmp_path / "2of8", tmp_path / "2of6")
    assert refused.code == 2 and "2of6/report.json is no report" in refused.err


def test_what_cannot_be_compared_is_refused(cli: Cli, folder: Path, source: Path, tmp_path: Path) -> None:
    a, b = folder / "2of8", folder / "2of6"
    (tmp_path / "page.html").write_text("mine")
    for words, why in (
        ((a,), "nothing to compare it with"),
        ((a, b, a), "named twice"),
        ((a, b, "--text", TEXT), "name the dense source with --baseline"),
        ((a, b, "--gpu", "h20"), "did you mean h200"),
        ((a, b, "--gpu", "h200", "--tokens", 10**7), "choose a number of tokens"),
        ((a, b, "--out", tmp_path / "page.html"), "exists already"),
        ((a, b, "--out", tmp_path / "no" / "page.html"), "does not exist"),
        ((a, folder / "absent"), "absent"),
        ((source, "--baseline", source, "--gpu", "h200"), "no linear is quantized"),
    ):
        refused = cli("compare", *words)
        assert refused.code == 2 and why in refused.err, (words, refused)
    assert (tmp_path / "page.html").read_text() == "mine"


@pytest.mark.parametrize("columns", [80, 60])
def test_the_tables_fit(
    cli: Cli, folder: Path, short_demo: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = cli("compare", *(folder / n for n in ("2of8", "2of6", "mixed")), "--baseline", short_demo, "--gpu", "h200")
    assert all(len(line) <= columns for line in shown.out.splitlines()), shown.out
    assert {"2of8", "2of6", "mixed", "bits", "16.00"} <= set(shown.out.split())


def test_the_page_shows_every_checkpoint(cli: Cli, folder: Path, short_demo: Path, tmp_path: Path) -> None:
    ckpts, out = [folder / name for name in ("2of8", "2of6", "mixed")], tmp_path / "page.html"
    assert cli("compare", *ckpts, "--baseline", short_demo, "--gpu", "h200", "--out", out, "-q").code == 0
    page = Page(out.read_text())
    charts = ["trade-speed", "trade-bits", "layers-linears", "layers-hidden"]
    assert [plot.attributes["id"] for plot in page.find("svg", "plot")] == charts
    # The source has no times, and nothing was measured of the mixed one.
    counts = [len(page.find("path", "point", within=chart)) for chart in charts]
    assert counts == [2, 3, 4, 4]
    rows = [row.text for row in page.find("tr")]
    found = slideconvert.compare(ckpts, CompareOptions(baseline=str(short_demo), gpu="h200"))
    for side in found.sides:
        row = next(row for row in rows if row.startswith(side.entry.name))
        assert f"{side.entry.bits:.2f}" in row and (side.speedup is None or f"{side.speedup:.2f}×" in row)
    assert sum("_proj" in row for row in rows) == 14
    assert out.read_text() == render(found)
    assert boxed(page, "table", "table")
    keys = [key.text for key in page.find("span", "key")]
    assert keys == [found.sides[0].entry.name, "2of8", "2of6", "2of8", "2of6"]


def test_the_page_loads_nothing_and_trusts_no_name(folder: Path, short_demo: Path) -> None:
    ckpts = [folder / "2of8", folder / "2of6"]
    found = slideconvert.compare(ckpts, CompareOptions(baseline=str(short_demo), gpu="h200"))
    sides = tuple(
        replace(side, entry=replace(side.entry, name=f"{HOSTILE}{place}", source=HOSTILE))
        for place, side in enumerate(found.sides)
    )
    text = render(replace(found, sides=sides, gpu=HOSTILE, notes=(HOSTILE,)))
    page = Page(text)
    assert "<script" not in text and "<img" not in text and HOSTILE in page.find("h1")[0].inside[-1].text
    policy = next(element for element in page.find("meta") if "http-equiv" in element.attributes)
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    used = {name for element in page.elements for name in element.attributes}
    assert not used & {"src", "href", "srcset", "data"} and not any(name.startswith("on") for name in used)


def test_checkpoints_with_equal_numbers_have_no_chart(folder: Path, tmp_path: Path) -> None:
    """Points on one line across or up show nothing."""
    shutil.copytree(folder / "2of8", tmp_path / "again")
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    report["held_out"]["kl"] += 0.1
    (tmp_path / "again" / "report.json").write_text(json.dumps(report))
    page = Page(render(slideconvert.compare([folder / "2of8", tmp_path / "again"], CompareOptions(gpu="h200"))))
    assert [plot.attributes["id"] for plot in page.find("svg", "plot")] == ["layers-linears", "layers-hidden"]
