"""The pictures of the README are those that benches/measured and the sliding code make."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from benches.pictures import IMAGES, ROOT, WEIGHTS, pictures
from tests.twins import slide as twin

SVG = "{http://www.w3.org/2000/svg}"
DRAWN = pictures()


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_up_to_date(name: str) -> None:
    assert (IMAGES / name).read_text(encoding="utf-8") == DRAWN[name], "run `python -m benches.pictures`"
    assert sorted(path.name for path in IMAGES.iterdir()) == sorted(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_small_and_legible_in_both_themes(name: str) -> None:
    """They need nothing from elsewhere, which an image may not load."""
    text = DRAWN[name]
    root = ET.fromstring(text)
    assert len(text) < 12_000 and max(len(line) for line in text.splitlines()[2:]) < 200
    assert root.attrib["font-family"].endswith(",sans-serif") and root.find(f"{SVG}title") is not None
    light, dark = text.split("@media (prefers-color-scheme:dark)")
    assert all(rule in part for rule in ("text{fill:#", ".ground{fill:#", ".s0{color:#") for part in (light, dark))
    css = text[text.index("<style>") : text.index("</style>")]
    assert css.count("{") == css.count("}") and "font-size" not in css
    assert ".line{fill:none" in light and "var(" not in text
    assert not re.findall(r"href|url\(|<script|@import", text)
    assert next(iter(root.iter(f"{SVG}rect"))).attrib["class"] == "ground"


def test_plotted_numbers_stand_in_the_benchmarks() -> None:
    """Read as text, without the tables' parser."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benches/measured").glob("*.md"))
    tips = [tip.text or "" for tip in ET.fromstring(DRAWN["speed.svg"]).iter(f"{SVG}title")]
    found = [tuple(re.findall(r"[\d.:]+", tip)[:3]) for tip in tips if "times" in tip and "nats" in tip]
    assert len(found) == 12
    for pattern, gain, kl in found:
        pattern = pattern.removesuffix(":")
        assert re.search(rf"^\| int8 {pattern}.*\({gain}\)", text, re.MULTILINE), (pattern, gain)
        assert re.search(rf"^\| [^|]*{pattern} \|.* · {kl} · [\d.]+ % \(", text, re.MULTILINE), (pattern, kl)
    tips = [tip.text or "" for tip in ET.fromstring(DRAWN["bits.svg"]).iter(f"{SVG}title")]
    found = [tuple(re.findall(r"^(.+): ([\d.]+) bits, perplexity ([\d.]+)$", tip)[0]) for tip in tips if "bits," in tip]
    assert len(found) == 6
    for pattern, stored, perplexity in found:
        assert re.search(rf"^\| qwen2 \|.* {pattern} \| {stored} \|.* \**{perplexity}\** \|$", text, re.MULTILINE)


def test_the_diagram_is_what_sliding_does() -> None:
    """Against the twin, with the weights that docs/concepts.md writes out."""
    assert f"one row, 2:8 {' '.join(map(str, WEIGHTS))}" in re.sub(
        " +w? +| +", " ", (ROOT / "docs/concepts.md").read_text()
    )
    slid = twin.slide(np.array([WEIGHTS]), 8)[0][:12].tolist()
    lifted = twin.lift_index(8, 8)[:12]
    root = ET.fromstring(DRAWN["slide.svg"])
    cells = [text.text for text in root.iter(f"{SVG}text") if re.fullmatch(r"x?-?\d+", text.text or "")]
    assert cells[:8] == [str(weight) for weight in WEIGHTS]
    assert cells[8:] == [cell for lane in range(12) for cell in (str(slid[lane]), f"x{lifted[lane]}")]
    assert len(list(root.iter(f"{SVG}line"))) == np.count_nonzero(WEIGHTS)
