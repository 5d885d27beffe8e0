"""The record of a conversion and the two ways it is shown: the HTML page and the model card."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from slideconvert import __version__
from slideconvert.models.families import LLAMA
from slideconvert.report import HeldOut, LayerReport, Report, Training, totals
from slideconvert.report.card import render_card
from slideconvert.report.html import render_html
from slideconvert.report.source_card import source_card
from slideconvert.report.summary import notes, patterns, size, told

LINEARS = LLAMA.linears
SHAPES = dict.fromkeys(LINEARS, (2048, 2048)) | {
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
NOTE = "3 of 128 calibration samples were shorter than 2048 tokens"
PERPLEXITY = {"source": 9.756, "output": 11.402}
PROTOCOL = "WikiText-2 test, sequences of 2048 tokens, first 64 sequences"
HOSTILE = '"><script>alert(1)</script>|`<img src=http://x onerror=y>`|'


def sample_layer(layer: int, place: str, kept: bool = False, **changes: Any) -> LayerReport:
    """A linear like those of a 1B model: the error grows from q to down and waves over the layers."""
    rows, columns = SHAPES[place]
    wave = 0.06 + 0.02 * LINEARS.index(place) + 0.03 * math.sin(layer / 3 + LINEARS.index(place))
    made = LayerReport(
        name=f"model.layers.{layer}.{place}",
        layer=layer,
        kind=place.rpartition(".")[2],
        shape=(rows, columns),
        scheme="bf16" if kept else "int8",
        pattern="2:inf" if kept else "2:8",
        method="" if kept else "magnitude",
        kept=kept,
        zeros=3 if kept else rows * columns // 4 + rows * columns // 300,
        pruned=0 if kept else rows * columns // 4,
        error=0.0 if kept else math.hypot(wave, 0.009),
        prune_error=0.0 if kept else wave,
        bytes_before=2 * rows * columns,
        bytes_after=2 * rows * columns if kept else rows * columns + 4 * rows,
        slid_columns=0,
    )
    return replace(made, **changes)


def sample_report(count: int = 16, layers: list[LayerReport] | None = None, **changes: Any) -> Report:
    """A verified INT8 2:8 conversion whose very last linear was kept."""
    if layers is None:
        last = (count - 1, LINEARS[-1])
        layers = [sample_layer(layer, place, (layer, place) == last) for layer in range(count) for place in LINEARS]
    before, after = (sum(getattr(layer, key) for layer in layers) for key in ("bytes_before", "bytes_after"))
    report = Report(
        source="meta-llama/Llama-3.2-1B",
        revision="4e20de362430cd3b72f300e6b0f18e50e7166e08",
        model_type="llama",
        layout="dense",
        recipe={"scheme": "int8", "pattern": "2:8", "rules": [{"match": "*.15.mlp.down_proj", "keep": True}]},
        layers=tuple(layers),
        totals=totals(layers, before + 525336576, after + 525336576),
        files={"model.safetensors": "9f86d081" * 8, "config.json": "2c26b46b" * 8},
        verified=227,
        notes=(NOTE,),
    )
    return replace(report, **changes)


@dataclass(eq=False)
class Element:
    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(repr=False)  # nested, it would make the message of a failed assertion explode
    text: str = ""

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()


@dataclass(eq=False, repr=False)
class Page(HTMLParser):
    """The page's elements, every text credited to all that surround it; raises if tags are not balanced."""

    source: str
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self.open, f"left open: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, list(self.open)))
        if tag not in ("meta", "br", "wbr"):
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, list(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1].tag == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def find(self, tag: str, name: str = "", within: str = "") -> list[Element]:
        """Elements by tag, class and the id of an element around them."""
        return [
            element
            for element in self.elements
            if element.tag == tag
            and (not name or name in element.classes)
            and (not within or any(outer.attributes.get("id") == within for outer in element.inside))
        ]

    def tile(self, title: str) -> str:
        return next(tile.text for tile in self.find("div", "tile") if tile.text.startswith(title))

    def points(self, plot: str = "errors") -> dict[str, tuple[float, float]]:
        """Tooltip -> center of every point in an error plot."""
        found = {}
        for point in self.find("path", "point", within=plot):
            x, y, scale = re.findall(
                r"^translate\(([\d.]+) ([\d.]+)\) scale\(([\d.]+)\)$", point.attributes["transform"]
            )[0]
            assert 0.5 <= float(scale) <= 1
            found[point.text] = (float(x), float(y))
        return found

    def scale(self, plot: str) -> tuple[float, float]:
        """Height of value 0 and of one unit, by the axis labels beside the grid lines (labels sit 4 lower)."""
        labels = self.find("text", "end", within=plot)
        values = [float(label.text.rstrip("%")) for label in labels]
        heights = [float(label.attributes["y"]) - 4 for label in labels]
        unit = (heights[0] - heights[-1]) / (values[-1] - values[0])
        return heights[0] + values[0] * unit, unit


def card_parts(card: str) -> tuple[dict[str, Any], str]:
    """Front matter, read, and the rest; cut where the Hub cuts."""
    found = re.fullmatch(r"---\n(.*?\n)---\n(.*)", card, re.S)
    assert found
    return yaml.safe_load(found[1]), found[2]


def card_rows(card: str) -> dict[str, list[str]]:
    """First cell -> the others, of every table row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): row[1:] for row in rows}


# The record


def test_json_and_back_is_the_same_report() -> None:
    report = sample_report(2, perplexity=PERPLEXITY, perplexity_protocol=PROTOCOL, notes=("größer", "zwei"))
    noted = replace(report, layers=(replace(report.layers[0], notes=("one", "two")), *report.layers[1:]))
    assert Report.from_json(noted.to_json()) == noted
    assert Report.from_json(noted.to_json()).to_json() == noted.to_json()
    assert "größer" in noted.to_json()
    assert noted.to_json().endswith("}\n")


@pytest.mark.parametrize("change", [{"verified": None}, {"revision": None}, {"files": {}}, {"notes": ()}])
def test_json_keeps_what_is_missing(change: dict[str, Any]) -> None:
    report = sample_report(1, **change)
    assert Report.from_json(report.to_json()) == report


def test_json_of_something_else_is_refused() -> None:
    extra = {**json.loads(sample_report(1).to_json()), "surprise": 1}
    less = {key: value for key, value in extra.items() if key not in ("surprise", "totals")}
    for text in ("", "{", "[]", "{}", json.dumps(extra), json.dumps(less)):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Report.from_json(text)


def test_totals_are_sums() -> None:
    layers = [sample_layer(0, "mlp.up_proj"), sample_layer(0, "self_attn.k_proj", kept=True)]
    sums = totals(layers, 10, 5)
    assert sums.weights == 8192 * 2048 + 512 * 2048
    assert sums.zeros == 8192 * 2048 // 4 + 8192 * 2048 // 300 + 3
    assert sums.pruned == 8192 * 2048 // 4
    assert sums.linear_bytes_before == 2 * sums.weights
    assert sums.linear_bytes_after == 8192 * 2048 + 4 * 8192 + 2 * 512 * 2048
    assert (sums.file_bytes_before, sums.file_bytes_after) == (10, 5)


def test_patterns_are_counted_without_kept_linears_and_ordered() -> None:
    chosen = ["2:inf", "2:10", "2:8", "2:10"]
    layers = [sample_layer(0, place, pattern=pattern) for place, pattern in zip(LINEARS[3:], chosen, strict=True)]
    report = sample_report(layers=[*layers, sample_layer(0, LINEARS[0], kept=True)])
    assert list(patterns(report).items()) == [("2:8", 1), ("2:10", 2), ("2:inf", 1)]


def test_equal_notes_are_listed_once_with_all_their_linears() -> None:
    layers = [sample_layer(0, place, notes=("odd tail",)) for place in LINEARS[:2]]
    assert notes(sample_report(layers=layers)) == [(NOTE, []), ("odd tail", [layer.name for layer in layers])]
    training = [Training(f"layer {number}", (0.5, 0.6), best=0) for number in range(6)]
    found = told(sample_report(layers=layers, training=(*training, Training("end to end", (0.5, 0.4), best=1))))
    undone = "Training did not lower the held-out loss and was undone."
    assert f"layer 0, layer 1, layer 2, layer 3 and 2 more: {undone}" in found and len(found) == 3


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (999_600, "1.00 MB"), (2_471_645_608, "2.47 GB"),
     (10_149_000, "10.1 MB"), (99_960_000, "100 MB"), (5 * 10**15, "5000 TB")],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, words: str) -> None:
    assert size(count) == words


# The page


@pytest.mark.parametrize("count", [1, 2, 16, 80])
def test_page_is_well_formed_and_complete(count: int) -> None:
    report = sample_report(count, perplexity=PERPLEXITY, perplexity_protocol=PROTOCOL)
    page = Page(render_html(report))
    rows = [row.text for row in page.find("tr")]
    for layer in report.layers:
        assert sum(f"{layer.name}" in row for row in rows) == 1
    assert [plot.attributes["id"] for plot in page.find("svg", "plot")] == ["bytes", "errors"][count == 1 :]
    assert page.elements[0].tag == "html" and page.elements[0].attributes["lang"] == "en"


def test_page_is_accessible() -> None:
    page = Page(render_html(sample_report(2)))
    for plot in page.find("svg", "plot"):
        names = plot.attributes["aria-labelledby"].split()
        assert [page_element.tag for page_element in page.elements if page_element.attributes.get("id") in names] == [
            "title",
            "desc",
        ]
    assert all(cell.attributes["scope"] in ("row", "col") for cell in page.find("th"))
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))


def test_page_loads_and_runs_nothing() -> None:
    report = sample_report(2, perplexity=PERPLEXITY, perplexity_protocol=PROTOCOL)
    text = render_html(report)
    page = Page(text)
    used = {name for element in page.elements for name in element.attributes}
    assert not used & {"src", "href", "xlink:href", "srcset", "data", "action"}
    assert not {element.tag for element in page.elements} & {"script", "link", "img", "iframe", "object", "base"}
    assert not any(name.startswith("on") for name in used)
    policy = next(element for element in page.find("meta") if "http-equiv" in element.attributes)
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme:dark" in text and "@media print" in text


def test_hostile_names_are_only_text() -> None:
    layers = [sample_layer(0, place, name=HOSTILE + place, kind=HOSTILE, notes=(HOSTILE,)) for place in LINEARS]
    report = sample_report(
        layers=[replace(layer, scheme=HOSTILE) for layer in layers],
        source=HOSTILE,
        revision=HOSTILE,
        model_type=HOSTILE,
        layout=HOSTILE,
        recipe={HOSTILE: HOSTILE},
        files={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        perplexity=PERPLEXITY,
        perplexity_protocol=HOSTILE,
    )
    text = render_html(report)
    page = Page(text)
    assert "<script" not in text and "<img" not in text
    assert {name for element in page.elements for name in element.attributes} == {
        name
        for element in Page(render_html(sample_report(1, perplexity=PERPLEXITY))).elements
        for name in element.attributes
    }
    assert HOSTILE + LINEARS[0] in page.find("tbody")[0].text


def test_characters_that_mislead_are_replaced() -> None:
    text = render_html(sample_report(1, source="good\u202egnp.exe\x00\ud800", notes=("a\x1b[2Jb",)))
    text.encode("utf-8")
    assert not set("\u202e\x00\ud800\x1b") & set(text)


def test_same_report_same_bytes() -> None:
    report = sample_report(3, perplexity=PERPLEXITY)
    again = Report.from_json(report.to_json())
    shuffled = replace(again, files=dict(reversed(again.files.items())))
    assert render_html(shuffled) == render_html(report)
    assert render_card(shuffled) == render_card(report)


def test_verdict_is_unmistakable() -> None:
    files, quality = Page(render_html(sample_report(1))).find("section", "verdict")
    assert files.classes[-1] == "good" and "Files intact: 227 tensors" in files.text
    assert quality.classes[-1] == "unknown" and "Quality not measured" in quality.text
    assert "Files intact: 1 tensor" in render_html(sample_report(1, verified=1)).replace("tensors", "")
    for nothing in (None, 0):
        page = Page(render_html(sample_report(1, verified=nothing)))
        refused = page.find("section", "verdict")[0]
        assert refused.classes[-1] == "bad" and "NOT VERIFIED" in refused.text
        assert not page.find("section", "good")


def test_tiles_show_the_figures_of_the_report() -> None:
    report = sample_report(16)
    page = Page(render_html(report))
    assert "2.47 GB → 1.52 GB" in page.tile("Weight files")
    assert f"{100 * report.totals.zeros / report.totals.weights:.2f}%" in page.tile("Zeros")
    assert "2:8ideal speed-up, not measured: 1.33\N{MULTIPLICATION SIGN}" in page.tile("Pattern")
    assert not any(tile.text.startswith(("Perplexity", "KL", "Output")) for tile in page.find("div", "tile"))


def test_the_change_of_weights_is_a_detail() -> None:
    """Methods that lower the output error change weights more: it is no headline."""
    report = sample_report(16)
    page = Page(render_html(report))
    done = [layer for layer in report.layers if not layer.kept]
    worst = max(done, key=lambda layer: layer.error)
    found = next(details.text for details in page.find("details") if details.text.startswith("Weight change"))
    mean = sum(layer.error for layer in done) / len(done)
    assert f"Mean {100 * mean:.2f}% over 111 linears; worst {100 * worst.error:.2f}%, {worst.name}" in found
    assert not any("%" in tile.text and "Weight" in tile.text[:12] for tile in page.find("div", "tile")[1:])


HELD_OUT = HeldOut(
    sequences=16, length=2048, kl=0.02791, kl_stderr=0.00208, source_perplexity=10.3468, output_perplexity=10.4333,
    layer_errors=(0.0648, 0.0831),
)  # fmt: skip


def held_out_report(**changes: Any) -> Report:
    """Two layers whose output errors are a third of their weight changes."""
    report = sample_report(2)
    layers = [layer if layer.kept else replace(layer, output_error=layer.error / 3) for layer in report.layers]
    return replace(report, layers=tuple(layers), held_out=replace(HELD_OUT, **changes))


def test_the_output_error_leads_where_it_was_measured() -> None:
    report = held_out_report()
    page, card = Page(render_html(report)), render_card(report)
    found = [layer.output_error or 0 for layer in report.layers if not layer.kept]
    mean, worst = f"{100 * sum(found) / len(found):.2f}%", f"{100 * max(found):.2f}%"
    first, behind, kl, perplexity = page.find("div", "tile")[:4]
    assert first.text.startswith(f"Output error{mean}mean over 13 linears, on 16 held-out calibration sequences")
    assert f"worst {worst} (model.layers." in first.text and "8.31%" in behind.text
    assert "0.0279 ± 0.0021nats per token" in kl.text and "10.347 → 10.433of source and output" in perplexity.text
    rows = card_rows(card)
    assert next(iter(rows.values())) == ["source", "this checkpoint"] and list(rows)[2] == "Output error"
    assert rows["Output error"] == ["", mean] and rows["KL divergence, held out"] == ["", "0.0279 ± 0.0021"]
    assert Report.from_json(report.to_json()) == report


def test_output_errors_are_drawn_by_layer_with_the_error_of_whole_layers() -> None:
    report = held_out_report()
    page = Page(render_html(report))
    assert [plot.attributes["id"] for plot in page.find("svg", "plot")] == ["output-errors", "bytes", "errors"]
    zero, unit = page.scale("output-errors")
    points = page.points("output-errors")
    assert len(points) == 13, "the kept linear has no error"
    for layer in report.layers:
        if layer.output_error is not None:
            height = points[f"{layer.name}: {100 * layer.output_error:.2f}%"][1]
            assert height == pytest.approx(zero - 100 * layer.output_error * unit, abs=0.2)
    assert [key.text for key in page.find("span", "together")] == ["whole layer"]
    line = page.find("path", "line", within="output-errors")[-1].attributes["d"]
    assert [float(y) for y in re.findall(r" ([\d.]+)", line)] == pytest.approx(
        [zero - 100 * error * unit for error in HELD_OUT.layer_errors], abs=0.2
    )


def test_held_out_figures_are_numbers() -> None:
    values = json.loads(held_out_report().to_json())
    for wrong in ({"kl": "<b>"}, {"layer_errors": [True]}, {"surprise": 1}):
        with pytest.raises(TypeError):
            Report.from_json(json.dumps({**values, "held_out": {**values["held_out"], **wrong}}))


def test_several_patterns_each_show_their_speedup() -> None:
    layers = [sample_layer(0, place, pattern="2:6" if "mlp" in place else "2:10") for place in LINEARS]
    tile = Page(render_html(sample_report(layers=layers))).tile("Patterns")
    assert "2:6 + 2:10" in tile and "1.50* (3 linears) + 1.25* (4 linears)" in tile.replace(
        "\N{MULTIPLICATION SIGN}", "*"
    )


def test_perplexity_is_shown_with_its_protocol() -> None:
    page = Page(render_html(sample_report(1, perplexity=PERPLEXITY, perplexity_protocol=PROTOCOL)))
    assert f"before → after9.756 → 11.402+16.9%, on {PROTOCOL}" in page.tile("Perplexity")
    alone = Page(render_html(sample_report(1, perplexity={"output": 11.402}))).tile("Perplexity")
    assert alone == "Perplexity after11.402"


COMPARISON: dict[str, float | None] = {
    **{"ratio": 1.16872, "ratio_stderr": 0.00312, "kl_mean": 0.15342, "kl_stderr": 0.00412, "kl_median": 0.08},
    **{
        "kl_99": 1.4,
        "kl_99_9": 3.25,
        "kl_max": 7.5,
        "same_top": 0.8812,
        "same_top_stderr": 0.0021,
        "acceptance": 0.8534,
    },
    **{"acceptance_stderr": 0.0018, "top_mass": 0.9912, "top": 256, "tokens": 81760},
}


def measured_report(**changes: Any) -> Report:
    errors = {"source": 0.11, "output": 0.15}
    words = {"perplexity": PERPLEXITY, "perplexity_stderr": errors, "perplexity_protocol": PROTOCOL}
    return sample_report(2, **words, comparison={**COMPARISON, **changes})


def test_divergence_from_the_source_is_shown_with_its_errors() -> None:
    report = measured_report()
    page, card = Page(render_html(report)), render_card(report)
    assert "9.756 ± 0.110 → 11.402 ± 0.150+16.9%, ratio 1.1687 ± 0.0031, on " in page.tile("Perplexity")
    spread = "median 0.08, 99th percentile 1.4, 99.9th 3.25, maximum 7.5"
    bound = "a lower bound, from the 256 most likely tokens (99.1% of the probability)"
    told = f"nats per token, mean of 81,760; {spread}; {bound}"
    assert page.tile("KL divergence") == f"KL divergence from the source0.153 ± 0.0041{told}"
    assert page.tile("Same top token").startswith("Same top token88.1% ± 0.2%of positions where")
    assert page.tile("Expected acceptance").startswith("Expected acceptance85.3% ± 0.2%of the tokens")
    rows = card_rows(card)
    assert rows["Perplexity"] == ["9.756 ± 0.110", "11.402 ± 0.150"]
    assert rows["Perplexity ratio"] == ["", "1.1687 ± 0.0031"]
    assert rows["KL divergence from the source"] == ["", "0.153 ± 0.0041"] and told in card
    assert rows["Same top token"] == ["", "88.1% ± 0.2%"] and rows["Expected acceptance"] == ["", "85.3% ± 0.2%"]
    assert Report.from_json(report.to_json()) == report


def test_divergence_of_one_sequence_has_no_errors_and_whole_lists_are_no_bound() -> None:
    none = dict.fromkeys(("ratio_stderr", "kl_stderr", "same_top_stderr", "acceptance_stderr"))
    report = replace(measured_report(top_mass=1.0, **none), perplexity_stderr={"source": None, "output": None})
    page, rows = Page(render_html(report)), card_rows(render_card(report))
    assert page.tile("KL divergence").endswith("maximum 7.5") and "±" not in page.tile("Perplexity")
    assert rows["KL divergence from the source"] == ["", "0.153"] and rows["Same top token"] == ["", "88.1%"]
    assert rows["Perplexity"] == ["9.756", "11.402"] and "Perplexity ratio" not in rows


def test_what_could_not_be_compared_is_not_shown() -> None:
    nothing = dict.fromkeys(name for name in COMPARISON if name not in ("top", "tokens"))
    report = measured_report(**nothing)
    assert "KL divergence" not in render_html(report) and "acceptance" not in render_card(report)


@pytest.mark.parametrize("field", ["comparison", "perplexity_stderr"])
def test_measured_numbers_are_numbers(field: str) -> None:
    values = json.loads(measured_report().to_json())
    for wrong in ("<b>", [1], True):
        with pytest.raises(TypeError, match="is no measured number"):
            Report.from_json(json.dumps({**values, field: {"kl_mean": wrong}}))


def pairs(page: Page) -> dict[str, tuple[list[str], list[float]]]:
    """The pairs of bars at the top: their texts and their lengths, by title."""
    tracks = [float(bar.attributes["style"].removeprefix("--w:")) for bar in page.find("i")]
    texts, titles = [text.text for text in page.find("b")], [title.text for title in page.find("h3")]
    return {title: (texts[2 * at : 2 * at + 2], tracks[2 * at : 2 * at + 2]) for at, title in enumerate(titles)}


def test_the_trade_off_is_at_the_top() -> None:
    report = measured_report()
    page = Page(render_html(report))
    top = page.find("section")[0]
    assert top.text.startswith("Trade-offAccuracy: KL divergence from the source 0.153 ± 0.0041; Same top token 88.1%")
    sums, found = report.totals, pairs(page)
    bits = [8 * stored / sums.weights for stored in (sums.linear_bytes_before, sums.linear_bytes_after)]
    assert found["Bits per weight"] == ([f"{one:.2f}" for one in bits], [1.0, round(bits[1] / bits[0], 3)])
    assert found["Perplexity"] == (["9.756", "11.402"], [round(9.756 / 11.402, 3), 1.0]) and "+16.9% on" in top.text
    kept = next(layer.weights for layer in report.layers if layer.kept)
    time = (kept + (sums.weights - kept) * 0.75) / sums.weights
    assert found["Time of the linears, ideal"] == (["1.00", f"{time:.2f}"], [1.0, round(time, 3)])
    held = Page(render_html(held_out_report()))
    assert "held-out calibration text: KL divergence 0.0279 nats" in held.find("section")[0].text
    assert pairs(held)["Perplexity"][0] == ["10.347", "10.433"]
    assert "Accuracy was not measured" in Page(render_html(sample_report(1))).find("section")[0].text


def test_equal_bars_are_left_out() -> None:
    """Pruning alone leaves the bits, 2:inf the time; layers of equal bytes and linears of equal error have no bars."""
    layers = [
        sample_layer(layer, place, scheme="bf16", pattern="2:inf", error=0.1, bytes_after=2 * math.prod(SHAPES[place]))
        for layer in range(3)
        for place in LINEARS
    ]
    page = Page(render_html(sample_report(layers=layers)))
    assert not pairs(page) and [plot.attributes["id"] for plot in page.find("svg", "plot")] == ["errors"]
    assert not page.find("td", "bar") and not page.find("span", "tag")
    one = [*layers[1:], replace(layers[0], error=0.2, pattern="2:4", bytes_after=3)]
    other = Page(render_html(sample_report(layers=one)))
    assert (
        pairs(other).keys() == {"Bits per weight", "Time of the linears, ideal"} and len(other.find("td", "bar")) == 21
    )
    assert other.find("rect", "before", within="bytes")
    groups = [replace(layer, pattern="1x16:50%") for layer in layers]
    assert "Time of the linears, ideal" not in pairs(Page(render_html(sample_report(layers=groups))))


def test_keys_stand_outside_of_what_scrolls() -> None:
    page = Page(render_html(held_out_report()))
    keys = page.find("span", "key")
    kinds = [place.rpartition(".")[2] for place in LINEARS]
    assert [key.text for key in keys] == [*kinds, "whole layer", "before", "after", *kinds]
    assert not [key for key in keys if any("scroll" in outer.classes for outer in key.inside)]
    assert all(any("scroll" in outer.classes for outer in plot.inside) for plot in page.find("svg", "plot"))


def test_notes_stand_above_the_figures() -> None:
    layers = [sample_layer(0, place, notes=("odd tail",)) for place in LINEARS]
    page = Page(render_html(sample_report(layers=layers)))
    box = page.find("section", "notes")[0]
    assert NOTE in box.text and f"odd tail: {layers[0].name}" in box.text and "and 4 more" in box.text
    assert page.elements.index(box) < page.elements.index(page.find("section", "tiles")[0])
    assert sum("odd tail" in row.text for row in page.find("tr")) == len(layers)
    assert not Page(render_html(sample_report(1, notes=()))).find("section", "notes")


def test_rows_show_every_linear() -> None:
    report = sample_report(2)
    rows = [row for row in Page(render_html(report)).find("tr") if "model.layers" in row.text]
    first, last = rows[0].text, rows[-1]
    assert "2,048 \N{MULTIPLICATION SIGN} 2,0482:8int825.33%" in first and "8.39 MB → 4.20 MB" in first
    assert f"%{100 * report.layers[0].error:.2f}%{100 * report.layers[0].prune_error:.2f}%" in first
    assert "still" in last.classes and "kept" in last.text and "2:inf" not in last.text
    assert sum("still" in row.classes for row in rows) == 1
    worst = max(report.layers, key=lambda layer: layer.error).name
    assert [row.text.startswith(f"{worst}worst") for row in rows].count(True) == 1
    assert sum("worst" in row.text for row in rows) == 1


def test_the_report_contains_recipe_and_hashes() -> None:
    report = sample_report(1)
    page = Page(render_html(report))
    recipe = yaml.safe_load(page.find("pre")[0].text)
    assert recipe == report.recipe and "{" not in page.find("pre")[0].text
    hashes = page.find("details")[-1].text
    assert all(name in hashes and digest in hashes for name, digest in report.files.items())
    assert len(Page(render_html(sample_report(1, files={}))).find("details")) == len(page.find("details")) - 1


@pytest.mark.parametrize("count", [1, 2, 16, 80])
def test_every_linear_is_one_point_at_its_error(count: int) -> None:
    report = sample_report(count)
    page = Page(render_html(report))
    points, (zero, unit) = page.points(), page.scale("errors")
    assert len(page.find("g", "series")) == len(LINEARS)
    assert len(page.find("path", "point")) == len(points) == len(report.layers)
    for layer in report.layers:
        tooltip = f"{layer.name}: {100 * layer.error:.2f}%{', kept' if layer.kept else ''}"
        assert points[tooltip][1] == pytest.approx(zero - 100 * layer.error * unit, abs=0.2)
    columns = [{x for tip, (x, _) in points.items() if f"layers.{layer}." in tip} for layer in range(count)]
    assert all(len(column) == 1 for column in columns)
    assert sorted(columns, key=min) == columns


def test_larger_error_is_higher_and_inside_the_plot() -> None:
    points = Page(render_html(sample_report(16))).points()
    by_error = sorted((float(tip.split(": ")[1].split("%")[0]), y) for tip, (_, y) in points.items())
    heights = [y for _, y in by_error]
    assert all(upper <= lower + 0.2 for lower, upper in pairwise(heights))
    assert heights[-1] < heights[0] - 100
    assert all(0 < x < 1080 and 0 < y < 370 for x, y in points.values())


def test_errors_close_together_get_an_axis_of_their_own_with_a_remark() -> None:
    layers = [sample_layer(0, place, error=0.16 + 0.002 * step) for step, place in enumerate(LINEARS)]
    page = Page(render_html(sample_report(layers=layers)))
    heights = [y for _, y in page.points().values()]
    assert max(heights) - min(heights) > 140
    assert "axis starts at 16%" in page.find("svg")[-1].text
    assert "axis starts" not in render_html(sample_report(2))


def test_kept_linears_are_hollow_and_break_the_line() -> None:
    layers = [sample_layer(layer, "mlp.up_proj", kept=layer == 2) for layer in range(5)]
    page = Page(render_html(sample_report(layers=layers)))
    assert [layer for layer, point in enumerate(page.find("path", "point")) if "kept" in point.classes] == [2]
    line = page.find("path", "line")[-1].attributes["d"]
    assert re.sub(r"[\d. ]", "", line) == "MLML"
    starts = re.findall(r"[ML]([\d.]+) ([\d.]+)", line)
    points = list(page.points().values())
    assert [(float(x), float(y)) for x, y in starts] == [points[place] for place in (0, 1, 3, 4)]


def test_bars_stand_on_zero_and_are_as_high_as_their_bytes() -> None:
    report = sample_report(3)
    page = Page(render_html(report))
    zero, unit = page.scale("bytes")
    assert "stored MB" in page.find("svg", "plot")[0].text
    for name in ("before", "after"):
        bars = page.find("rect", name, within="bytes")
        assert len(bars) == 3
        for number, bar in enumerate(bars):
            total = sum(getattr(layer, f"bytes_{name}") for layer in report.layers if layer.layer == number)
            top, height = float(bar.attributes["y"]), float(bar.attributes["height"])
            assert top + height == pytest.approx(zero, abs=0.2)
            assert height == pytest.approx(total / 1e6 * unit, abs=0.2)
            assert bar.text == f"layer {number}, {name}: {size(total)}"


@pytest.mark.parametrize("count", [2, 16, 32, 80, 126])
def test_axis_labels_do_not_collide(count: int) -> None:
    page = Page(render_html(sample_report(count)))
    for plot in ("errors", "bytes"):
        across = [label for label in page.find("text", "mid", within=plot) if label.text.isdigit()]
        places = [float(label.attributes["x"]) for label in across]
        assert len(places) >= min(count, 12)
        assert all(right - left > 30 for left, right in pairwise(places))
        up = [label.text for label in page.find("text", "end", within=plot)]
        assert 4 <= len(up) <= 8 and len(set(up)) == len(up)


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_is_the_worst_and_not_drawn(error: float) -> None:
    layers = [sample_layer(0, place) for place in LINEARS]
    page = Page(render_html(sample_report(layers=[layers[0], replace(layers[1], error=error), *layers[2:]])))
    assert f"worst {100 * error:.2f}%, {layers[1].name}" in page.find("details")[0].text
    assert len(page.points()) == len(layers) - 1


def test_nothing_converted_still_makes_a_page_and_a_card() -> None:
    kept = sample_report(layers=[sample_layer(0, place, kept=True) for place in LINEARS])
    for report in (kept, sample_report(layers=[])):
        page = Page(render_html(report))
        assert "nothing converted" in page.find("h1")[0].text
        assert not any(tile.text.startswith(("Worst", "Pattern")) for tile in page.find("div", "tile"))
        card_parts(render_card(report))


# The card


def test_front_matter_has_the_right_fields() -> None:
    front, body = card_parts(
        render_card(sample_report(1, source_card={"license": "llama3.2", "language": ["en", "no"]}))
    )
    assert front == {
        "license": "llama3.2",
        "language": ["en", "no"],
        "base_model": "meta-llama/Llama-3.2-1B",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["slideconvert", "slidesparse", "compressed-tensors", "int8", "sparse", "2:8"],
    }
    assert all(isinstance(tag, str) for tag in front["tags"])
    assert body.startswith("\n# meta-llama/Llama-3.2-1B, 2:8 sparse INT8\n")
    assert not {"license", "language"} & card_parts(render_card(sample_report(1)))[0].keys()


@pytest.mark.parametrize(
    "source", ["llama", "./org/name", "../name", "~/name", "/org/name", "a/b/c", "org/", "C:\\models\\x", "a b/c", ""]
)
def test_base_model_is_claimed_for_hub_ids_only(source: str) -> None:
    assert (
        not {"base_model", "base_model_relation"} & card_parts(render_card(sample_report(1, source=source)))[0].keys()
    )


def test_tags_say_what_is_inside() -> None:
    chosen = {"self_attn.q_proj": "2:10", "mlp.down_proj": "2:6"}
    layers = [sample_layer(0, place, scheme="fp8", pattern=pattern) for place, pattern in chosen.items()]
    mixed = card_parts(render_card(sample_report(layers=layers)))[0]
    assert mixed["tags"][2:] == ["compressed-tensors", "fp8", "sparse", "2:6", "2:10"]
    layers = [sample_layer(0, place, scheme="bf16", pattern="2:inf") for place in LINEARS]
    plain = card_parts(render_card(sample_report(layers=layers)))[0]
    assert plain["tags"][2:] == ["2:inf"] and "base_model_relation" not in plain


def test_numbers_are_the_reports() -> None:
    report = sample_report(16, perplexity=PERPLEXITY, perplexity_protocol=PROTOCOL)
    card = render_card(report)
    rows, sums = card_rows(card), report.totals
    assert [re.findall(r"\(([\d,]+) bytes", cell)[0].replace(",", "") for cell in rows["All weight files"]] == [
        str(sums.file_bytes_before),
        str(sums.file_bytes_after),
    ]
    assert [re.findall(r"\(([\d,]+) bytes", cell)[0].replace(",", "") for cell in rows["Decoder linears"]] == [
        str(sums.linear_bytes_before),
        str(sums.linear_bytes_after),
    ]
    zeros = f"{100 * sums.zeros / sums.weights:.2f}% ({sums.zeros:,} of {sums.weights:,})"
    assert rows["Zeros in the decoder linears"] == ["", zeros]
    assert rows["Perplexity"] == ["9.756", "11.402"]
    assert PROTOCOL in card
    done = [layer for layer in report.layers if not layer.kept]
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all kinds"):
        members = [layer for layer in done if kind in (layer.kind, "all kinds")]
        mean, worst = sum(layer.error for layer in members) / len(members), max(members, key=lambda layer: layer.error)
        assert rows[kind] == [
            str(len(members)), f"{100 * mean:.2f}%", f"{100 * worst.error:.2f}%", f"`{worst.name}`",
        ]  # fmt: skip
    assert "In 111 of its 112 decoder linears at least two of every 8 consecutive input weights are zero" in card
    assert "1 linear is kept as in the source" in card


def test_what_was_not_measured_is_not_mentioned() -> None:
    card = render_card(sample_report(2)).lower()
    assert not any(word in card for word in ("perplexity", "speed", "faster", "latency", "throughput", "accuracy"))


def test_recipe_reads_back_as_it_was() -> None:
    for recipe in (sample_report(1).recipe, {"pattern": "2:10", "match": "```\n---\n# x"}, {}):
        found = re.search(r"## Recipe\n\n(`{3,})yaml\n(.*?)\n?\1\n", render_card(sample_report(1, recipe=recipe)), re.S)
        assert found and yaml.safe_load(found[2]) == recipe


def test_loading_follows_the_layout() -> None:
    dense, slide = (render_card(sample_report(1, layout=layout)) for layout in ("dense", "slide"))
    assert "AutoModelForCausalLM.from_pretrained" in dense and "vllm serve CKPT" in dense
    assert "relayout" not in dense
    assert "slideconvert relayout CKPT OUT --layout dense" in slide and "slideconvert generate CKPT --prompt" in slide
    assert "import slideconvert\nfrom transformers" in slide and "pip install PACKAGE\nvllm serve CKPT\n" in slide
    plain = render_card(
        sample_report(layers=[sample_layer(0, place, scheme="bf16") for place in LINEARS], layout="dense")
    )
    assert "trust_remote_code" in dense and "trust_remote_code" in slide and "trust_remote_code" not in plain
    assert all("slideconvert verify CKPT" in card for card in (dense, slide))


def test_what_a_card_installs_is_never_a_name_that_anyone_can_claim() -> None:
    """In any layout and scheme: a placeholder that is explained, or the address that the publisher gives."""
    for layout, scheme in (("slide", "int8"), ("dense", "int8"), ("dense", "w4a16"), ("gqs", "w4a16")):
        layers = [sample_layer(0, place, scheme=scheme) for place in LINEARS]
        report = sample_report(layers=layers, layout=layout)
        card, address = render_card(report), "https://example.org/slideconvert-0.1.0-py3-none-any.whl"
        assert set(re.findall(r"pip install ([^\s`;)]+)", card)) == {"PACKAGE"}, card
        assert f"PACKAGE is a wheel or a checkout of slideconvert {__version__}.\n" in card
        named = render_card(report, package=address)
        assert set(re.findall(r"pip install ([^\s`;)]+)", named)) == {address} and "PACKAGE" not in named
    assert "pip install 'git+https://example.org/a?b&c'\n" in render_card(
        sample_report(1, layout="slide"), package="git+https://example.org/a?b&c"
    )


def test_card_shows_the_verdict_and_the_notes() -> None:
    card = render_card(sample_report(1))
    assert "read back and checked 227 tensors after writing" in card and "Not verified" not in card
    assert f"- {NOTE}\n" in card and "without retraining" in card
    assert "**Not verified**" in render_card(sample_report(1, verified=None))
    assert "**Not verified**" in render_card(sample_report(1, verified=0))


def test_hostile_names_do_not_break_the_card() -> None:
    nasty = HOSTILE + "\n---\n# title\n|a|b|"
    layers = [sample_layer(0, place, name=nasty + place, kind=nasty, notes=(nasty,)) for place in LINEARS]
    recipe, licence = {nasty: nasty}, {"license": nasty}
    report = sample_report(
        layers=layers, source=nasty, revision=nasty, notes=(nasty,), recipe=recipe, source_card=licence
    )
    front, body = card_parts(render_card(report))
    assert front["license"] == nasty and "base_model" not in front
    prose = re.sub(r"```.*?```|(?<!\\)`[^`\n]*`", "", body, flags=re.S)
    assert "<script" not in prose and "<img" not in prose and "\n---\n" not in prose
    assert [line for line in prose.splitlines() if line.startswith("#")][1:] == [
        "## Measured", "## Recipe", "## Load", "## Check", "## Limits",
    ]  # fmt: skip
    prose = prose.replace("<details><summary>Weight change by kind and layer</summary>", "").replace("</details>", "")
    assert "<" not in prose
    table = [line for line in body.splitlines() if line.startswith("| `")]
    assert table and all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)


def test_the_sources_licence_is_carried_on(tmp_path: Path) -> None:
    fields = "license: other\nlicense_name: llama-x\nlicense_link: LICENSE\nlanguage: en\ntags: [a]\n"
    (tmp_path / "README.md").write_text(f"---\n{fields}---\n# Llama\n".replace("\n", "\r\n"))
    found = source_card(tmp_path)
    assert found == {"license": "other", "license_name": "llama-x", "license_link": "LICENSE", "language": ["en"]}
    report = sample_report(1, source_card=found, revision="a" * 40)
    front = card_parts(render_card(report))[0]
    assert front["license_link"] == f"https://huggingface.co/meta-llama/Llama-3.2-1B/blob/{'a' * 40}/LICENSE"
    assert {name: front[name] for name in ("license", "license_name", "language")} == {
        "license": "other", "license_name": "llama-x", "language": ["en"],
    }  # fmt: skip
    travels = replace(report, files={"LICENSE": "0" * 64})  # the link leads to the copy in this repository
    assert card_parts(render_card(travels))[0]["license_link"] == "LICENSE"
    for link in ("javascript:alert(1)", "../../other/LICENSE", "/etc/passwd", ["LICENSE"]):
        card = render_card(replace(report, source_card={**found, "license_link": link}))
        assert "license_link" not in card_parts(card)[0], link
    folder = replace(report, source="a/local folder")
    assert "license_link" not in card_parts(render_card(folder))[0]
    web = replace(folder, source_card={**found, "license_link": "https://example.com/licence"})
    assert card_parts(render_card(web))[0]["license_link"] == "https://example.com/licence"
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("dashes", ["x---", "----", "--- not the end", "  ---"])
def test_front_matter_ends_at_a_line_of_three_dashes(tmp_path: Path, dashes: str) -> None:
    (tmp_path / "README.md").write_text(
        f"---\nlicense: mit\nabout: |\n  one\n  {dashes}\nlanguage: en\n---\n# A\n---\n"
    )
    assert source_card(tmp_path) == {"license": "mit", "language": ["en"]}


@pytest.mark.parametrize(
    "card", ["", "# no front matter\n---\nlicense: mit\n---\n", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\n"]
)
def test_a_card_that_states_nothing(tmp_path: Path, card: str) -> None:
    assert source_card(tmp_path) == {}
    (tmp_path / "README.md").write_text(card)
    assert source_card(tmp_path) == {}


def test_fields_of_a_card_that_are_not_text_are_omitted(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: {a: b}\nlanguage: [en, no]\nlicense_name: ''\n---\n")
    assert source_card(tmp_path) == {}  # YAML reads the language `no` as False


@pytest.mark.parametrize("layout", ["slide", "dense"])
def test_card_of_a_repository_names_it(layout: str) -> None:
    body = card_parts(render_card(sample_report(1, layout=layout), repo="me/llama-2of8"))[1]
    assert 'from_pretrained("me/llama-2of8", ' in body and "vllm serve me/llama-2of8\n" in body
    assert "hf download me/llama-2of8 --local-dir llama-2of8\nslideconvert verify llama-2of8\n" in body
    assert not re.search("PATH|CKPT|NAME|IMPORT", body)


def test_card_of_a_branch_names_it() -> None:
    body = card_parts(render_card(sample_report(1, layout="slide"), repo="me/llama", branch="int8 x"))[1]
    assert body.count('from_pretrained("me/llama", revision="int8 x"') == 2
    assert "vllm serve me/llama --revision 'int8 x'\n" in body
    download = "```bash\nhf download me/llama --revision 'int8 x' --local-dir llama\n"
    assert f"{download}slideconvert generate llama --prompt" in body and "relayout llama OUT --layout dense" in body
    assert f"{download}slideconvert verify llama\n" in body and not re.search("PATH|CKPT", body)


def test_worst_linear_of_each_layer() -> None:
    report = sample_report(4)
    rows = {row[0]: row[1:] for row in re.findall(r"^\| (\d+) \| ([\d.]+%) \| `(\S+)` \|$", render_card(report), re.M)}
    for number in range(4):
        worst = max((x for x in report.layers if x.layer == number and not x.kept), key=lambda x: x.error)
        assert rows[str(number)] == (f"{100 * worst.error:.2f}%", worst.name)
    measured = replace(report, layers=tuple(replace(layer, output_error=0.125) for layer in report.layers))
    assert render_card(measured).count(" | 12.50% | `") == 4 and "output error" not in render_card(report)


def test_card_mentions_training() -> None:
    trained = render_card(sample_report(1, training=(Training("layer 0", (0.5, 0.4), 1),)))
    assert "without retraining" not in trained and "trained the remaining weights against the source model" in trained
