"""What follows from rows: sums, speed-ups, efficiency, comparisons; the page and its figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slideconvert.bench.case import DENSE, Case, Row
from slideconvert.bench.figures import Figure, Log, figures
from slideconvert.bench.machine import Sensors
from slideconvert.bench.page import render, write_page
from slideconvert.bench.png import png_of
from slideconvert.bench.results import read_results
from slideconvert.bench.tables import Table, tables
from slideconvert.bench.weights import random_weight
from slideconvert.core.patterns import ALL
from slideconvert.report.svg import standalone
from tests.conftest import Cli
from tests.helpers.bench_results import LINEARS, PATTERNS, TOKENS, gpu_like, seconds_of


def total(tokens: int, pattern: str, way: str) -> float:
    return sum(seconds_of(rows, columns, tokens, pattern, way) for rows, columns in LINEARS.values())


def test_speed_ups_are_sums_over_sums(tmp_path: Path) -> None:
    auto, best = tables(gpu_like(tmp_path).rows.values())
    assert (auto.chosen, best.chosen, auto.baseline, auto.tokens) == ("auto", "best", "stock", list(TOKENS))
    for tokens in TOKENS:
        for pattern in PATTERNS:
            own = total(tokens, pattern, "few_sparse" if tokens <= 64 else "many_sparse")
            dense = total(tokens, DENSE, "dense")
            assert best.speedup(pattern, tokens, "stock") == pytest.approx(total(tokens, DENSE, "stock") / own)
            assert best.speedup(pattern, tokens, "dense") == pytest.approx(dense / own)
            assert best.speedup(pattern, tokens, "torch") == pytest.approx(total(tokens, DENSE, "int_mm") / own)
            assert best.speedup(pattern, tokens, "bf16") == pytest.approx(2 * dense / own)
            assert auto.speedup(pattern, tokens, "dense") == pytest.approx(dense / total(tokens, pattern, "auto"))


def test_efficiency_is_the_published_measure() -> None:
    """2:4 twice as fast, 2:6 1.4 times: of the 1.5 that two thirds of the weights allow, (1.4 / 2) / (0.5 / 0.667)."""
    table = Table(
        "kernel", "m", "int8", "best", {"o": (8, 8)}, {DENSE: {64: 100.0}}, {"2:4": {64: 50.0}, "2:6": {64: 100 / 1.4}}
    )
    assert table.efficiency("2:6", 64) == pytest.approx(1.4 / 2 / (0.5 / (4 / 6)))
    assert table.efficiency("2:4", 64) == pytest.approx(1.0) and table.of_ideal("2:6", 64) == pytest.approx(1.4 / 1.5)
    assert table.efficiency("2:8", 64) is None and table.efficiency("2:6", 1) is None


def test_sums_of_some_linears_are_not_shown(tmp_path: Path) -> None:
    rows = gpu_like(tmp_path).rows
    without = [
        row
        for row in rows.values()
        if not (row.case.linear == "o_proj" and row.case.tokens == 64 and row.case.pattern == "2:8")
    ]
    auto, best = tables(without)
    assert all(table.speedup("2:8", 64) is None and table.speedup("2:6", 64) for table in (auto, best))
    failed = [replace(row, times=None, failure="x") if row.case.way == "stock" else row for row in rows.values()]
    assert {table.baseline for table in tables(failed)} == {"dense"}


@given(length=st.sampled_from([4, 6, 8, 10, 16]), rows=st.integers(1, 5), columns=st.integers(16, 70))
def test_random_weights_follow_their_pattern(length: int, rows: int, columns: int) -> None:
    dense = random_weight(rows, columns, DENSE, torch.device("cpu"))
    weight = random_weight(rows, columns, f"2:{length}", torch.device("cpu"))
    assert (dense != 0).all() and ((weight == dense) | (weight == 0)).all()
    for row, source in zip(weight.tolist(), dense.tolist(), strict=True):
        for start in range(0, columns, length):
            block, before = row[start : start + length], source[start : start + length]
            pruned = [abs(value) for value, kept in zip(before, block, strict=True) if kept == 0]
            assert len(pruned) == min(2, len(block))
            if len(block) == length:
                assert sorted(map(abs, before))[:2] == sorted(pruned)


def test_two_runs_are_compared_case_by_case(cli: Cli, tmp_path: Path) -> None:
    a, b = gpu_like(tmp_path / "a"), gpu_like(tmp_path / "b", device="NVIDIA H100", faster=1.25)
    noisy = next(key for key, row in b.rows.items() if row.case.way == "auto" and row.case.tokens == 64)
    times = b.rows[noisy].times
    assert times
    b.rows[noisy] = replace(b.rows[noisy], times=replace(times, high=times.high * 2))
    gone = next(key for key, row in b.rows.items() if row.case.way == "int_mm")
    b.rows[gone] = replace(b.rows[gone], times=None, failure="out of memory")
    a.save(), b.save()
    told = json.loads(cli("bench", "compare", tmp_path / "a", tmp_path / "b", "--json").out)
    assert (told["only_a"], told["only_b"]) == (1, 0)
    assert told["machines"] == {"device": ["NVIDIA H200", "NVIDIA H100"]}
    assert all(one["ratio"] == pytest.approx(1.25) for one in told["ratios"])
    assert [one["tokens"] for one in told["ratios"] if not one["apart"]] == [64]
    label = list(b.rows[noisy].label)
    [group] = [one for one in told["groups"] if one["label"] == label]
    assert group["cases"] == 20 and group["apart"] == 19 and group["mean"] == pytest.approx(1.25)
    shown = cli("bench", "compare", tmp_path / "a", tmp_path / "b").out
    assert "device: A NVIDIA H200, B NVIDIA H100" in shown and "1 cases are in A alone" in shown
    layer, kernel = gpu_like(tmp_path / "c"), gpu_like(tmp_path / "d", "kernel")
    layer.save(), kernel.save()
    assert "of bench kernel" in cli("bench", "compare", tmp_path / "c", tmp_path / "d").err
    kernel.rows.clear()
    kernel.save()
    assert "no case in common" in cli("bench", "compare", tmp_path / "d", tmp_path / "d").err


def test_results_are_read_as_they_were(tmp_path: Path) -> None:
    found = gpu_like(tmp_path / "a")
    found.save()
    again = read_results(tmp_path / "a")
    assert again.rows == found.rows and again.ceilings == found.ceilings and again.machine == found.machine


def test_the_page_needs_nothing_from_elsewhere_and_trusts_no_name(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    hostile = '<img src=x onerror="alert(1)">'
    for key, row in list(found.rows.items()):
        if row.case.way == "int_mm" and row.case.tokens == 1:
            case = Case(**{**vars(row.case), "model": hostile})
            found.rows[key] = Row(case, None, failure=f"failed {hostile}")
    some = tables(found.rows.values())
    page = render(found, some, figures(some, 4.2e12))
    assert hostile not in page and "&lt;img" in page
    [script] = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=", page.replace("&lt;img src=x", ""))
    assert page == render(found, some, figures(some, 4.2e12))


def test_every_speed_up_is_on_the_page(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    some = tables(found.rows.values())
    write_page(found, some)
    page = (tmp_path / "index.html").read_text()
    for table in some:
        for pattern in PATTERNS:
            for tokens in TOKENS:
                assert f'">{table.speedup(pattern, tokens):.2f}</td>' in page
    assert page.count('<table class="heat">') == len(some) * 4 and 'class="sorts"' in page


def test_figures_are_drawings_of_their_own(tmp_path: Path) -> None:
    some = tables(gpu_like(tmp_path).rows.values())
    curves, roofline = figures(some[:1], 4.2e12)[0]
    assert roofline.markup.count('class="line roof"') == 1 and "roof" not in curves.markup
    for figure in (one for of_table in figures(some, 4.2e12) for one in of_table):
        alone = standalone(figure.markup)
        root = ET.fromstring(alone)
        assert "prefers-color-scheme:dark" in alone and "font-family" in alone
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "var(" not in alone and "var(" not in figure.markup
        titles = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]
        points = [text for text in titles if ", " in text]
        lines = len(PATTERNS) + ("roofline" in figure.name)
        assert len(points) == lines * len(TOKENS), figure.name


def styles_of(figure: Figure) -> dict[str, str]:
    """The class of each series, by the name that its points tell."""
    root = ET.fromstring(standalone(figure.markup))
    found = {}
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        tips = [one.text or "" for one in group.iter("{http://www.w3.org/2000/svg}title")]
        found |= {tip.partition(", ")[0]: group.attrib["class"] for tip in tips}
    return found


def test_patterns_can_be_told_apart_and_look_alike_in_all_figures(tmp_path: Path) -> None:
    table = tables(gpu_like(tmp_path).rows.values())[0]
    every = replace(table, patterns={str(pattern): table.patterns["2:4"] for pattern in ALL})
    curves, roofline = map(styles_of, figures([every], 4.2e12)[0])
    assert curves.keys() == every.patterns.keys() and roofline.keys() == {*curves, DENSE}
    assert curves.items() <= roofline.items() and len(set(roofline.values())) == len(roofline) == len(ALL) + 1


def test_a_single_size_has_no_curve(tmp_path: Path) -> None:
    table = tables(gpu_like(tmp_path).rows.values())[0]
    patterns = {name: {64: times[64]} for name, times in table.patterns.items()}
    baselines = {name: {64: times[64]} for name, times in table.baselines.items()}
    made = figures([replace(table, patterns=patterns, baselines=baselines)], 4.2e12)[0]
    assert [figure.name.rpartition("-")[2] for figure in made] == ["roofline"]


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6))
def test_logarithmic_axes_hold_their_values(values: list[float]) -> None:
    axis = Log.over(values, 100.0, 500.0)
    assert axis.low <= min(values) and max(values) <= axis.high and len(axis.ticks) >= 2
    for value in values:
        assert 99.9 <= axis.at(value) <= 500.1
    assert axis.at(axis.low) == pytest.approx(100) and axis.at(axis.high) == pytest.approx(500)


def test_readings_of_a_gpu_are_medians_since_the_last_look() -> None:
    sensors = Sensors(torch.device("cpu"))
    assert sensors.taken() == (None, None, None)
    for line in ("600.5, 1500, 60\n", "[N/A], 1980, 61\n", "700.5, 1400, 62\n", "690.0, 1300, 64\n", "1, 2\n"):
        sensors.add(line)
    assert sensors.taken() == (690.0, 1400.0, 62.0) and sensors.taken() == (None, None, None)


def test_figures_are_png_files_with_their_text(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same figure without its letters is another picture: a font that is missing would leave them out."""
    words = ("bench", "kernel", "--model", source, "--scheme", "int8", "--pattern", "2:4", "--tokens", "1")
    words += ("--device", "cpu", "--out", tmp_path / "out")
    assert cli(*words, "--png").code == 0
    drawn = sorted((tmp_path / "out" / "figures").glob("*.png"))
    assert [path.stem for path in drawn] == [path.stem for path in sorted(drawn[0].parent.glob("*.svg"))]
    for path in drawn:
        svg, data = path.with_suffix(".svg").read_text(), path.read_bytes()
        width, height = map(int, re.findall(r'viewBox="0 -\d+ (\d+) (\d+)"', svg)[0])
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (2 * width, 2 * height)
        unlabelled = re.sub(r"<text[^>]*>[^<]*</text>", "", svg)
        assert unlabelled.count("<path") == svg.count("<path") and len(png_of(unlabelled)) < 0.8 * len(data)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    refused = cli(*words[:-1], tmp_path / "other", "--png")
    assert refused.code == 2 and "pip install 'slideconvert[png]'" in refused.err
    assert not (tmp_path / "other").exists() and cli(*words).code == 0


def test_a_ceiling_is_dashed_in_the_file_as_on_the_page(tmp_path: Path) -> None:
    found = gpu_like(tmp_path)
    some = tables(found.rows.values())
    roofline = figures(some, 4.2e12)[0][1]
    for text in (
        standalone(roofline.markup, title=roofline.title, names=roofline.series),
        render(found, some, figures(some, 4.2e12)),
    ):
        assert re.search(r"\.roof\{stroke:[^;}]+;stroke-dasharray:5 4\}", text)
    assert f">{roofline.title}</text>" in standalone(roofline.markup, title=roofline.title)
