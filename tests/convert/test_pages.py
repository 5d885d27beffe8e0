"""What every page has: colors of enough contrast, boxes in which wide tables and plots scroll, units, and no empty
columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from slideconvert.bench.figures import figures
from slideconvert.bench.page import render
from slideconvert.bench.results import SERVE, Results
from slideconvert.bench.serving.rows import ServeCase, ServeRow
from slideconvert.bench.tables import tables
from slideconvert.report.html import render_html
from slideconvert.report.style import STYLE
from slideconvert.report.svg import MARKERS, WIDTH, standalone
from tests.convert.test_report import Page, held_out_report, sample_report
from tests.helpers.bench_results import gpu_like

TEXT, MARK = 4.5, 3.0
"""Least contrast of text, and of lines and marks, to what is behind them (WCAG 2.1, AA)."""
THEMES = dict(zip(("light", "dark"), re.findall(r":root\{([^}]*--page[^}]*)\}", STYLE), strict=False))
PAIRS = (
    *((ink, ground, TEXT) for ink in ("ink", "soft") for ground in ("page", "card", "mark")),
    *((name, f"{name}-page", TEXT) for name in ("good", "bad", "warn")),
    ("warn", "card", TEXT),
    ("warn", "mark", TEXT),
    *((f"s{number}", "card", MARK) for number in range(len(MARKERS))),
    *((name, "card", MARK) for name in ("before", "after")),
)
"""What the style sheet puts on what: the notes of a table are amber, and its rows are marked where the mouse is."""


def luminance(color: str) -> float:
    digits = color.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "ground", "least"), PAIRS)
def test_colors_have_enough_contrast(theme: str, name: str, ground: str, least: float) -> None:
    colors = dict(re.findall(r"--([\w-]+):(#\w+)", THEMES["light"]))
    colors |= dict(re.findall(r"--([\w-]+):(#\w+)", THEMES[theme]))
    low, high = sorted((luminance(colors[name]), luminance(colors[ground])))
    assert (high + 0.05) / (low + 0.05) >= least


def rules(text: str, selector: str) -> list[str]:
    """The declarations of a selector, outside of media queries."""
    plain = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", text)
    return [body for names, body in re.findall(r"([^{}]+)\{([^{}]*)\}", plain) if selector in names.strip().split(",")]


def boxed(page: Page, tag: str, box: str) -> bool:
    found = page.find(tag)
    return bool(found) and all(any(box in outer.classes for outer in one.inside) for one in found)


RUNS = "slide layout on backend few_sparse:64,many_sparse; " * 5


def served(*checkpoints: str) -> Results:
    """What a server reached with a dense checkpoint and others, by load."""
    machine = {"device": "NVIDIA H200", "gpu_memory": 150_109_880_320, "power_limit_watts": "700.00", "output": 128}
    found = Results(Path("unwritten"), SERVE, machine, ceilings={})
    for what, size in (("decode", 1), ("decode", 16), ("rate", 2), ("latency", 128)):
        for place, name in enumerate(("dense", *checkpoints)):
            case = ServeCase("Llama-3.2-1B", name, "int8", name, "", what, size, str(size))
            speed = 12_345.6 * size * (1 + place)
            first = 5.0 if what == "rate" else None
            found.rows[case.key] = ServeRow(case, "1", speed, speed, speed, gib=1.4, ttft_90_ms=first, runs=RUNS)
    return found


def bench_page(found: Results) -> str:
    some = list(tables(found.rows.values()))
    return render(found, some, figures(some, 4.2e12))


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: render_html(sample_report(2)),
    "calibrated": lambda: render_html(held_out_report()),
    "bench": lambda: bench_page(gpu_like(Path("unwritten"))),
    "served": lambda: bench_page(served("2:4", "2:6")),
}


@pytest.mark.parametrize("name", PAGES)
def test_wide_tables_and_plots_scroll_in_boxes_of_their_own(name: str) -> None:
    """At every width: a long name, or many columns, is wider than any window."""
    page = Page(PAGES[name]())
    assert boxed(page, "table", "table") and "overflow:auto" in rules(STYLE, ".table")
    wide = [plot for plot in page.find("svg", "plot") if "small" not in plot.classes]
    assert all(any("scroll" in outer.classes for outer in plot.inside) for plot in wide)
    assert "overflow-x:auto" in rules(STYLE, ".scroll")
    assert all(plot.attributes["viewbox"].startswith("0 0 ") for plot in page.find("svg"))


@pytest.mark.parametrize("name", PAGES)
def test_keys_wrap_outside_of_what_scrolls(name: str) -> None:
    page = Page(PAGES[name]())
    assert page.find("span", "key")
    assert not [key for key in page.find("span", "key") if any("scroll" in outer.classes for outer in key.inside)]


@pytest.mark.parametrize("name", PAGES)
def test_plots_name_their_axes(name: str) -> None:
    page = Page(PAGES[name]())
    assert page.find("svg", "plot")
    for plot in page.find("svg", "plot"):
        names = [text.text for text in page.find("text", "name", within=plot.attributes["id"])]
        assert len(names) == 2 and all(names)


def test_a_column_without_a_value_is_left_out() -> None:
    heads = {name: [head.text for head in Page(page()).find("th")] for name, page in PAGES.items()}
    assert "Output error" not in heads["report"] and "Output error" in heads["calibrated"]
    assert "load,\N{NO-BREAK SPACE}s" not in heads["served"] and "setting" not in heads["served"]
    some = replace(held_out_report(), layers=sample_report(1).layers)
    assert "Output error" not in [head.text for head in Page(render_html(some)).find("th")]


def test_tiles_fill_their_rows() -> None:
    """As many as there are: nothing stands for a tile that is not there."""
    assert any("flex-wrap:wrap" in rule for rule in rules(STYLE, ".tiles"))
    assert any(rule.startswith("padding") and "flex:1 1" in rule for rule in rules(STYLE, ".tile"))


def test_numbers_of_a_server_have_units() -> None:
    """Times of a token where tokens are what it makes, and of a request otherwise."""
    page = Page(PAGES["served"]())
    heads = {head.text for head in page.find("th")}
    assert {"stock, µs per token", "stock, µs", "weights,\N{NO-BREAK SPACE}GiB", "tokens per second"} <= heads
    facts = {fact.text for fact in page.find("li")}
    assert {"GPU memory: 139.8 GiB", "power limit: 700.00 W", "output: 128 tokens"} <= facts
    titles = [title.text for title in page.find("h2")]
    assert len(titles) == len(set(titles)) and "Llama-3.2-1B, int8, sequences decoded at once" in titles
    assert "Speed-up over stock vLLM with a dense checkpoint" in page.find("section")[0].text
    cells = [cell.text for cell in page.find("td")]
    assert "12,346" in cells and not [cell for cell in cells if re.search(r"\de\+", cell)]


def test_long_text_in_a_cell_is_folded() -> None:
    page = Page(PAGES["served"]())
    folded = [one.text for one in page.find("details") if one.inside[-1].tag == "td"]
    assert len(folded) == len(served("2:4", "2:6").rows) and all(text.endswith(RUNS) for text in folded)


@pytest.mark.parametrize("count", [1, 9, 40])
def test_the_legend_of_a_file_has_room_for_every_name(count: int) -> None:
    names = [f"checkpoint number {place}" for place in range(count)]
    alone = standalone('<svg viewBox="0 0 1080 300"></svg>', names=names)
    above, height = map(int, re.findall(r'viewBox="0 -(\d+) 1080 (\d+)"', alone)[0])
    places = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="(-[\d.]+)"', alone)]
    assert len(places) == len(set(places)) == count and height == 300 + above
    assert all(8 * len(names[-1]) + x <= WIDTH and -above < y < 0 for x, y in places)
    row = sorted(x for x, y in places if y == places[0][1])
    assert all(right - left > 8 * len(names[0]) for left, right in pairwise(row))
