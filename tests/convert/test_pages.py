"""What every page has: colors of enough contrast, boxes in which wide tables and plots scroll, and no empty columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from slideconvert.report.html import render_html
from slideconvert.report.style import STYLE
from tests.convert.test_report import Page, held_out_report, sample_report

TEXT, MARK = 4.5, 3.0
"""Least contrast of text, and of lines and marks, to what is behind them (WCAG 2.1, AA)."""
THEMES = dict(zip(("light", "dark"), re.findall(r":root\{([^}]*--page[^}]*)\}", STYLE), strict=False))
PAIRS = (
    *((ink, ground, TEXT) for ink in ("ink", "soft") for ground in ("page", "card", "mark")),
    *((name, f"{name}-page", TEXT) for name in ("good", "bad", "warn")),
    ("warn", "card", TEXT),
    ("warn", "mark", TEXT),
    *((f"s{number}", "card", MARK) for number in range(7)),
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


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: render_html(sample_report(2)),
    "calibrated": lambda: render_html(held_out_report()),
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


def test_plots_name_their_axes() -> None:
    page = Page(PAGES["calibrated"]())
    for plot in page.find("svg", "plot"):
        names = [text.text for text in page.find("text", "name", within=plot.attributes["id"])]
        assert len(names) == 2 and all(names)


def test_a_column_without_a_value_is_left_out() -> None:
    heads = [
        [head.text for head in Page(PAGES[name]()).find("th") if head.attributes["scope"] == "col"] for name in PAGES
    ]
    assert "Output error" not in heads[0] and "Output error" in heads[1]
    some = replace(held_out_report(), layers=sample_report(1).layers)
    assert "Output error" not in [head.text for head in Page(render_html(some)).find("th")]


def test_tiles_fill_their_rows() -> None:
    """As many as there are: nothing stands for a tile that is not there."""
    assert any("flex-wrap:wrap" in rule for rule in rules(STYLE, ".tiles"))
    assert any(rule.startswith("padding") and "flex:1 1" in rule for rule in rules(STYLE, ".tile"))
