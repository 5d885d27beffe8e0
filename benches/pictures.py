"""The pictures of the README as SVG files, from numbers of benches/measured and from the code that slides.

    python -m benches.pictures

Writes docs/images; a test compares the files with what this makes.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from slideconvert.kernels.windows import lift_index, slide
from slideconvert.report.chart import Chart, Point, Scale, Series
from slideconvert.report.svg import standalone, svg

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benches/measured"
IMAGES = ROOT / "docs" / "images"
FONT = 14

WEIGHTS, LENGTH = (7, -3, 5, 0, -9, 0, 4, 6), 8
"""A block of docs/concepts.md."""
CELL, GAP, WIDTH = 40, 20, 560
COLORS = ("s0", "s2", "s4")
"""Of the windows."""


def measured() -> str:
    """All measured tables."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(MEASURED.glob("*.md")))


def rows(section: str, first: str) -> list[dict[str, str]]:
    """The rows of a measured table by the names of its columns: the first table below the heading `section` whose
    first line begins with `first`. The column without a name is ""."""
    text = measured()
    part = text[text.index(f"\n{section}\n") :]
    head, _, *lines = part[part.index(f"\n{first}") + 1 :].split("\n\n")[0].splitlines()
    names = _cells(head)
    return [dict(zip(names, _cells(line), strict=True)) for line in lines]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _number(text: str) -> float:
    """'**14.20**' or '12.15'."""
    return float(text.strip("* "))


def speed() -> str:
    """KL divergence over speed, by pattern: a line for each load."""
    times = {row[""]: row for row in rows("## Decoding and prompts end to end in vLLM", "| | batch 1 ")}
    served = {"2:8": "int8 2:8, memory 1, later", "2:6": "int8 2:6, memory 1", "2:4": "int8 2:4"}
    lost = {row["INT8"].split()[-1]: row["balanced"] for row in rows("### SmolLM2-135M-Instruct", "| INT8 ")[:3]}
    kl = {pattern: float(cell.split(" · ")[1]) for pattern, cell in lost.items()}
    series = []
    for load in ("batch 1", "16", "64", "prompts 8,192"):
        gains = {pattern: float(re.findall(r"\(([\d.]+)\)", times[row][load])[0]) for pattern, row in served.items()}
        points = [
            Point(
                gain,
                kl[pattern],
                f"{pattern}: {gain:.2f} times, {kl[pattern]:.3f} nats",
                pattern if load == "64" else "",
            )
            for pattern, gain in gains.items()
        ]
        series.append(
            Series({"prompts 8,192": "prompts"}.get(load, load if " " in load else f"batch {load}"), tuple(points))
        )
    every = [point for one in series for point in one.points]
    chart = Chart(
        "speed",
        "Accuracy against speed, by pattern",
        "KL divergence of SmolLM2-135M at INT8 2:8, 2:6 and 2:4, over the speed-up of a model of Qwen2.5-7B's shapes",
        Scale.over([1.0, *(point.x for point in every)], "times as fast as dense INT8 (vLLM, H200, 7B shapes)"),
        Scale.over([0.0, *(point.y for point in every)], "KL from dense, nats per token"),
        series,
        legend=True,
        notes=(
            "Decoding by batch size, and prompts of 8,192 tokens;",
            "2:6 and 2:8 with SLIDESPARSE_MEMORY=1; commits e6edef9, 779068f.",
            "Accuracy: SmolLM2-135M, preset balanced, commits e374aae, 35889ef (2:6).",
        ),
    )
    return standalone(chart.draw(), FONT)


def bits() -> str:
    """Perplexity over bits per weight in 4 bits: 2:L patterns and pruned groups."""
    groups = [row for row in rows("## GQSA: groups of 16 in 4 bits", "| model | pruned ") if row["model"] == "qwen2"]
    windows = [row for row in rows("## GQSA: groups of 16 in 4 bits", "| model | | bits") if row["model"] == "qwen2"]
    dense = re.findall(r"\(dense: qwen2 ([\d.]+), llama", measured())[0]
    series = [
        Series("2:L", tuple(_bit(row, row[""]) for row in windows)),
        Series("GQSA", tuple(_bit(row, row["pruned"]) for row in groups)),
    ]
    every = [point for one in series for point in one.points]
    chart = Chart(
        "bits",
        "Accuracy against bits per weight",
        "Perplexity of a small Qwen2 in 4 bits, with 2:8 and 2:4 and with 20 to 50 % of the groups pruned",
        Scale.over((point.x for point in every), "bits per weight, 4-bit codes in groups of 16"),
        Scale.over([float(dense), *(point.y for point in every)], "perplexity"),
        series,
        legend=True,
        notes=(
            f"A Qwen2 of 5.48 million parameters (BF16: {dense}), trained by block",
            "and end to end; commits 337363a (GQSA) and 7e80fba (2:L).",
        ),
    )
    return standalone(chart.draw(), FONT)


def _bit(row: dict[str, str], tag: str) -> Point:
    count, perplexity = float(row["bits per weight"]), _number(row["+ E2E-OQP"])
    return Point(count, perplexity, f"{tag}: {count:.2f} bits, perplexity {perplexity:.2f}", tag)


def diagram() -> str:
    """How a block of 2:8 becomes windows of 2:4, and which activations meet them."""
    slid = slide(torch.tensor([WEIGHTS], dtype=torch.int8), LENGTH)[0].tolist()
    index = lift_index(LENGTH, LENGTH)[: 3 * 4].tolist()
    left, top, middle, low = (WIDTH - LENGTH * CELL) // 2, 36, 160, 244
    out = [_label("8 weights, at least two of them zero", 24)]
    for window, color in enumerate(COLORS):
        x, start = _slid_x(4 * window), left + 2 * window * CELL
        corners = f"{start},{top + CELL} {start + 4 * CELL},{top + CELL} {x + 4 * CELL},{middle} {x},{middle}"
        out.append(f'<polygon class="{color}" points="{corners}" fill="currentColor" fill-opacity=".13"/>')
    owners = {index[lane]: lane for lane in range(12) if slid[lane]}
    for column, weight in enumerate(WEIGHTS):
        x = left + column * CELL
        if column in owners:
            lane = owners[column]
            ends = f'x1="{x + CELL // 2}" y1="{top + CELL}" x2="{_slid_x(lane) + CELL // 2}" y2="{middle}"'
            out.append(f'<line class="{COLORS[lane // 4]}" {ends} stroke="currentColor" stroke-width="1.5"/>')
        out.append(_cell(x, top, str(weight), COLORS[owners[column] // 4] if column in owners else ""))
    out.append(_label("slid: 3 windows of four, stride 2, at most two non-zeros in each", middle + CELL + 20))
    for lane in range(12):
        color = COLORS[lane // 4]
        out.append(_cell(_slid_x(lane), middle, str(slid[lane]), color if slid[lane] else ""))
        out.append(_cell(_slid_x(lane), low, f"x{index[lane]}", color if slid[lane] else ""))
    out.append(_label("lifted activations: x2 to x5 appear twice", low + CELL + 20))
    out.append(_label("12 columns for 8 (K'/K = 1.5), every window 2:4, the same dot product", low + CELL + 48))
    about = f"A block {list(WEIGHTS)} becomes the windows {[slid[at : at + 4] for at in (0, 4, 8)]}"
    return standalone(
        svg("slide", "How a 2:8 block becomes 2:4 windows", about, low + CELL + 62, "".join(out), WIDTH), FONT
    )


def _slid_x(lane: int) -> int:
    return (WIDTH - 12 * CELL - 2 * GAP) // 2 + lane * CELL + lane // 4 * GAP


def _label(text: str, y: int) -> str:
    return f'<text class="mid" x="{WIDTH // 2}" y="{y}">{text}</text>'


def _cell(x: int, y: int, text: str, color: str) -> str:
    """A box with a number; filled if it counts."""
    box = f'x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="4"'
    fill = (
        f'class="{color}" fill="currentColor" fill-opacity=".28" stroke="currentColor"'
        if color
        else 'class="grid" fill="none"'
    )
    name = "" if color else " name"
    return f'<rect {box} {fill}/><text class="mid{name}" x="{x + CELL // 2}" y="{y + 26}">{text}</text>'


def pictures() -> dict[str, str]:
    """The content of each file of docs/images."""
    drawn = {"slide.svg": diagram(), "speed.svg": speed(), "bits.svg": bits()}
    return {name: re.sub(r">(?=<[a-z])", ">\n", text) for name, text in drawn.items()}


if __name__ == "__main__":
    for name, text in pictures().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
