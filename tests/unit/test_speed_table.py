"""Tables of times: that the bundled ones say what was published and measured, lookups, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches import ship_speed
from slideconvert.allocate.gpus import BUNDLED, PUBLISHED
from slideconvert.allocate.speed import SpeedTable, Times
from slideconvert.allocate.written import times_lines
from slideconvert.core.patterns import ALL, BlockPattern
from slideconvert.errors import InputError
from tests.helpers.fused_models import HEAD, LAYERS, LLAMA_70B, table_of
from tests.helpers.matrices import examples

ROOT = Path(__file__).parents[2]
DENSE = BlockPattern(None)


def whole(times: Sequence[Times], name: str) -> float:
    """The speed-up of a layer all of whose linears have this pattern, as the table has it."""
    pattern = BlockPattern.parse(name)
    return sum(time.dense for time in times) / sum(time.in_table[pattern] for time in times)


# ---- the bundled tables


PUBLISHED_ROWS = [
    # GPU, model, tokens, dense us, 2:4 … 2:16 and 2:inf, as printed
    ("a100", "Llama-3.2-1B", 64, 81.4, "1.16 0.84 0.81 0.70 0.63 0.65 0.71 0.65"),
    ("a100", "BitNet-2B", 4096, 1500, "1.98 1.38 1.38 1.33 1.25 1.14 1.20 1.06"),
    ("a100", "Llama-3.2-3B", 16384, 9390, "2.03 1.56 1.41 1.28 1.24 1.10 1.22 1.07"),
    ("a100", "Qwen2.5-7B", 4096, 5390, "2.03 1.49 1.38 1.29 1.10 1.16"),
    ("a100", "Qwen2.5-14B", 512, 859, "2.16 1.63 1.50 1.39 1.21 1.14 1.28 1.13"),
    ("rtx4090", "Llama-3.2-1B", 256, 108, "1.59 1.31 1.18 1.01 0.50 0.79 1.07 0.54"),
    ("rtx4090", "BitNet-2B", 16384, 4200, "1.58 1.07 1.08 1.01 0.99 0.91 0.93 0.83"),
    ("rtx4090", "Llama-3.2-3B", 128, 106, "1.35 1.24 1.12 1.06 0.36 0.85 0.30 0.59"),
    ("rtx4090", "Llama-3.2-3B", 256, 170, "1.41 1.16 1.30 1.03 0.29 0.41 0.24 0.37"),
    ("rtx4090", "Qwen2.5-7B", 64, 256, "1.61 1.18 1.11 1.05 0.08 0.28 0.22 0.15"),
    ("rtx4090", "Qwen2.5-14B", 1024, 1270, "1.74 1.15 1.17 0.98 0.56 0.70 0.81 0.71"),
    ("h100", "Llama-3.2-1B", 1024, 160, "1.26 1.02 1.01 0.88 0.81 0.83 0.84 0.79"),
    ("h100", "BitNet-2B", 16384, 2310, "1.29 0.94 0.90 0.83 0.79 0.75 0.77 0.67"),
    ("h100", "Llama-3.2-3B", 64, 90, "1.96 1.54 1.29 1.22 1.19 1.15 1.18 1.09"),
    ("h100", "Qwen2.5-7B", 16384, 9160, "1.54 1.13 1.06 1.02 0.88 0.88 0.91 0.81"),
    ("h100", "Qwen2.5-14B", 16384, 13500, "2.01 1.51 1.36 1.26 1.13 1.05 1.13 1.01"),
    ("b200", "Llama-3.2-1B", 64, 57.8, "1.86 1.64 1.66 1.51 1.40 1.47 1.55 1.47"),
    ("b200", "Qwen2.5-14B", 16384, 9890, "6.38 4.43 4.19 3.95 3.46 3.22 3.59 3.16"),
    ("rtx5080", "BitNet-2B", 4096, 1370, "1.49 1.05 1.01 0.96 0.90 0.87 0.87 0.78"),
    ("rtx5080", "Qwen2.5-7B", 16384, 18800, "1.50 1.16 1.02 0.97 0.84 0.89 0.90 0.80"),
    ("gb10", "Llama-3.2-3B", 256, 511, "1.93 1.34 1.18 0.95 1.01 0.80 1.03 0.81"),
    ("gb10", "Qwen2.5-7B", 16384, 41900, "1.33 0.94 0.86 0.78 0.69 0.72 0.72 0.60"),
    ("gb10", "Qwen2.5-14B", 16384, 48000, "1.44 1.01 0.89 0.83 0.74 0.67 0.75 0.66"),
]
"""Of arXiv 2603.05232, Appendix B; rows at both sides of every page break among them."""


@pytest.mark.parametrize(("gpu", "model", "tokens", "dense", "printed"), PUBLISHED_ROWS)
def test_a_published_model_gets_the_numbers_as_printed(
    gpu: str, model: str, tokens: int, dense: float, printed: str
) -> None:
    times = SpeedTable.load(gpu).times(LAYERS[model], "int8", tokens)
    assert sum(time.dense for time in times) == pytest.approx(dense, rel=1e-12)
    ratios = dict(zip(map(str, ALL), map(float, printed.split()), strict=False))
    assert {str(pattern) for pattern in times[0].sparse} == ratios.keys()
    for name, ratio in ratios.items():
        assert whole(times, name) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("gpu", PUBLISHED)
def test_the_published_blocks_belong_to_their_models(gpu: str) -> None:
    """A block of another model would stand out: at 16384 tokens a GPU computes them all at nearly the same rate (the
    H100's power cap makes large ones slower), and the time grows with the model."""
    table = SpeedTable.load(gpu)
    assert [row.tokens for row in table.rows] == [64 * 2**step for step in range(9)] * len(LAYERS)
    assert list(dict.fromkeys(row.model for row in table.rows)) == list(LAYERS)
    for model, layer in LAYERS.items():
        assert all(list(row.linears) == layer for row in table.rows if row.model == model)
    large = [row for row in table.rows if row.tokens == 16384]
    weights = [sum(math.prod(shape) for shape in row.linears) for row in large]
    rates = [2 * row.tokens * count / row.dense for row, count in zip(large, weights, strict=True)]
    assert max(rates) / min(rates) < (1.5 if gpu == "h100" else 1.07)
    assert [row.dense for row in large] == sorted(row.dense for row in large)
    for model in LAYERS:
        grown = [row.dense for row in table.rows if row.model == model and row.tokens >= 512]
        assert grown == sorted(grown)


def test_our_own_table_says_what_the_shipped_times_say() -> None:
    """The file is that of benches/ship_speed.py, and a layer is the sum of its linears."""
    assert (ROOT / "slideconvert/allocate/speed_h200.csv").read_text() == ship_speed.text()
    linears = json.loads(ship_speed.FILE.read_text())["times"]
    table = SpeedTable.load("h200")
    assert table.served and len(table.rows) == len(LAYERS) * 2 * 15
    for row in table.rows:
        names = [f"{rows}x{columns} {row.scheme}" for rows, columns in row.linears]
        dense = sum(linears[f"{name} 2:inf"]["stock"][str(row.tokens)] for name in names)
        assert row.dense == pytest.approx(dense, abs=0.051)
        for pattern, gain in row.speedups.items():
            ways = [linears[f"{name} {pattern}"].values() for name in names]
            sparse = sum(min(times.get(str(row.tokens)) or math.inf for times in own) for own in ways)
            assert gain == pytest.approx(dense / sparse, abs=0.00051)


@pytest.mark.parametrize("gpu", PUBLISHED)
def test_no_published_speedup_counts_beyond_its_bound(gpu: str) -> None:
    """2:4 tensor cores are twice as fast, and no more: the dense product of a B200's table is slower than the GPU."""
    table, beyond = SpeedTable.load(gpu), 0
    assert not table.served
    for row in table.rows:
        times = table.times(row.linears, "int8", row.tokens)
        for pattern, gain in row.speedups.items():
            counted = sum(time.dense for time in times) / sum(time.sparse[pattern] for time in times)
            length = pattern.length or math.inf
            bound = 1 / (1 - 2 / length)
            assert counted == pytest.approx(min(gain, bound)), (row, pattern)
            beyond += gain > bound
    assert gpu != "b200" or beyond > 340


@pytest.mark.parametrize("gpu", BUNDLED)
def test_every_table_names_its_origin(gpu: str) -> None:
    table = SpeedTable.load(gpu.upper())
    assert table.gpu == gpu
    assert any(re.search("arXiv 2603.05232|slideconvert tune", line) for line in table.source)
    named = {name for name in BUNDLED for line in table.source if line.startswith((f"{name}:", f"{name},"))}
    assert named == ({gpu} if gpu in ("a100", "b200", "rtx4090") else set()), "what is said of other GPUs"


# ---- looking up


def test_a_model_without_measurements_uses_the_nearest_one() -> None:
    times = SpeedTable.load("a100").times(LLAMA_70B, "int8", 4096)
    assert {time.measured for time in times} == {"Qwen2.5-14B on a100 at 4096 tokens"}
    assert whole(times, "2:8") == pytest.approx(1.43)
    weights = [math.prod(shape) for shape in (*LLAMA_70B, *LAYERS["Qwen2.5-14B"])]
    assert sum(time.dense for time in times) == pytest.approx(6310 * sum(weights[:4]) / sum(weights[4:]))
    for time, count in zip(times, weights, strict=False):
        assert time.dense / times[0].dense == pytest.approx(count / weights[0])


def test_large_linears_decide_which_layer_is_nearest(tmp_path: Path) -> None:
    rows = "g,int8,small,512x256+512x256,64,10,1.2,1\ng,int8,large,4096x1024+4096x1024,64,90,1.8,1\n"
    for time in table_of(tmp_path, HEAD + rows).times([(64, 64), (4096, 1024)], "int8", 64):
        assert time.measured == "large on g at 64 tokens"


def test_times_between_measured_tokens_lie_on_a_line_in_logarithms(tmp_path: Path) -> None:
    table = table_of(tmp_path, HEAD + "g,int8,m,64x64,1024,10,1.2,1\ng,int8,m,64x64,4096,90,1.8,\n")
    (time,) = table.times([(64, 64)], "int8", 2048)
    assert (time.dense, time.of(BlockPattern(4))) == pytest.approx((30, 30 / math.sqrt(1.2 * 1.8)))
    assert BlockPattern(8) not in time.sparse
    (third,) = table.times([(64, 64)], "int8", 1625)  # a third of the way from 1024 to 4096, 4 ** (1 / 3) = 1.587
    assert third.dense == pytest.approx(10 * 9 ** (1 / 3), rel=1e-3)


@pytest.mark.parametrize("gpu", BUNDLED)
@examples(20)
@given(model=st.sampled_from([*LAYERS]), tokens=st.integers(64, 16384))
def test_times_lie_between_those_of_the_measured_tokens(gpu: str, model: str, tokens: int) -> None:
    table = SpeedTable.load(gpu)
    rows = [row for row in table.rows if (row.model, row.scheme) == (model, "int8")]
    low = max((row for row in rows if row.tokens <= tokens), key=lambda row: row.tokens)
    high = min((row for row in rows if row.tokens >= tokens), key=lambda row: row.tokens)
    times = table.times(LAYERS[model], "int8", tokens)
    near = 1e-12  # of rounding
    assert min(low.dense, high.dense) * (1 - near) <= sum(time.dense for time in times)
    assert sum(time.dense for time in times) <= max(low.dense, high.dense) * (1 + near)
    for pattern, ratio in low.speedups.items():
        ends = sorted([ratio, high.speedups[pattern]])
        assert ends[0] * (1 - near) <= whole(times, str(pattern)) <= ends[1] * (1 + near)


def test_a_table_of_linears_is_searched_per_linear(tmp_path: Path) -> None:
    rows = "g,int8,wide,4096x1024,64,8,1.5,1.1\ng,int8,long,1024x4096,64,16,1.9,1.3\n"
    wide, long, small = table_of(tmp_path, HEAD + rows).times([(8192, 1024), (1024, 3000), (64, 128)], "int8", 64)
    assert (wide.measured, long.measured) == ("wide on g at 64 tokens", "long on g at 64 tokens")
    assert (wide.dense, long.dense) == (16, 16 * 3000 / 4096)
    assert (wide.of(BlockPattern(4)), wide.of(BlockPattern(8)), wide.of(DENSE)) == (16 / 1.5, 16 / 1.1, 16)
    assert small.measured.startswith("long")  # more columns than rows


@pytest.mark.parametrize(("tokens", "words"), [(63, "63 tokens"), (16385, "16385 tokens"), (1, "64 to 16384")])
def test_tokens_that_were_not_measured_are_refused(tokens: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SpeedTable.load("h100").times(LAYERS["Qwen2.5-7B"], "int8", tokens)


def test_what_a_table_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"a100 has no times of fp8, only of int8"):
        SpeedTable.load("a100").times(LAYERS["Qwen2.5-7B"], "fp8")
    time = SpeedTable.load("a100").times(LAYERS["Qwen2.5-7B"], "int8")[0]
    with pytest.raises(InputError, match=r"no time of 2:16 for Qwen2.5-7B on a100 at 4096 tokens .*2:14"):
        time.of(BlockPattern(16))


@pytest.mark.parametrize(
    ("word", "nearest"), [("h10", "h100"), ("4090", "rtx4090"), ("B20", "b200"), ("gb100", "gb10")]
)
def test_an_unknown_gpu_is_refused_with_the_nearest_word(word: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"unknown GPU '{word.lower()}'.*did you mean {nearest}\?.*\.csv"):
        SpeedTable.load(word)


ROW = "g,int8,m,64x64+64x32,64,10,1.5,1.1"
BAD_TABLES = [
    ("", "no times"),
    ("# a comment\n" + HEAD, "no times"),
    ("gpu,scheme\n" + ROW, r"line 1: the columns are gpu,scheme .*they must be gpu,scheme,model,linears,tokens,dense"),
    (HEAD.replace(",2:4,2:8", "") + "g,int8,m,64x64,64,10", "line 1: the columns are"),
    (HEAD.replace("2:8", "2:9") + ROW, r"unknown pattern in .*line 1: '2:9' \(did you mean 2:8"),
    (HEAD.replace("2:8", "2:4") + ROW, "line 1: a column stands there twice"),
    (HEAD + ROW + ",1", "line 2: 9 values for 8 columns"),
    (HEAD + "\n# note\n" + ROW.replace("int8", "in8"), r"unknown scheme in .*line 4: 'in8' \(did you mean int8"),
    (HEAD + ROW.replace("int8", "bf16"), r"unknown scheme in .*line 2: 'bf16'"),
    (HEAD + ROW.replace("g,", " ,"), "line 2: gpu is empty"),
    (HEAD + ROW.replace(",m,", ",,"), "line 2: model is empty"),
    (HEAD + ROW.replace("64x32", "64"), r"line 2: linears is '64x64\+64'"),
    (HEAD + ROW.replace("64x32", "64x0"), "line 2: linears is"),
    (HEAD + ROW.replace(",64,", ",6.4,"), "line 2: tokens is '6.4'"),
    (HEAD + ROW.replace(",10,", ",-10,"), "line 2: dense is '-10'"),
    (HEAD + ROW.replace("1.5", "nan"), "line 2: 2:4 is 'nan'"),
    (HEAD + ROW.replace("1.1", "fast"), "line 2: 2:8 is 'fast'"),
    (HEAD + ROW.replace("1.1", "inf"), "line 2: 2:8 is 'inf'"),
    (HEAD + ROW + "\n" + ROW, "line 3: the same GPU, scheme, linears and tokens again"),
    (HEAD + ROW + "\n" + ROW.replace("+64x32", ""), "line 3: rows of layers and of single linears"),
    (HEAD + ROW + "\n" + ROW.replace("g,", "other,"), "times of g, other"),
    (
        HEAD + ROW.replace(",m,", f",{'m' * 200_000},"),
        r"line 2: 200,033 characters, of at most 4,096 \(the columns are",
    ),
    ("x" * 200_000 + "\n" + ROW, "line 1: 200,000 characters"),
    (HEAD + ROW.replace(",m,", ',"m,'), r"line 2: not CSV \(unexpected end of data\)"),
    (HEAD + ROW.replace(",64,", f",{'6' * 4000},"), "line 2: tokens is '666"),  # int() takes 4300 digits
    (HEAD + ROW.replace("64x32", "64x" + "3" * 4000), "line 2: linears is '64x64"),
    (HEAD + ROW.replace(",64,", ",٦٤,"), "line 2: tokens is '٦٤'"),
]


@pytest.mark.parametrize(("text", "words"), BAD_TABLES)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        table_of(tmp_path, text)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.csv: No such file"):
        SpeedTable.load(str(tmp_path / "missing.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary.csv: it is not UTF-8"):
        SpeedTable.load(str(tmp_path / "binary.csv"))


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_bytes(b"\xef\xbb\xbf" + (HEAD + ROW).replace("\n", "\r\n").encode())
    assert SpeedTable.load(str(tmp_path / "times.csv")).times([(64, 96)], "int8", 64)[0].dense == 10


@pytest.mark.parametrize("gpu", ["h200", "a100"])
def test_comments_are_shown_in_whole_sentences(gpu: str) -> None:
    """One in a line, which the terminal breaks."""
    table = SpeedTable.load(gpu)
    first, *shown = times_lines(["Llama-3.2-1B"], table)
    assert first == "times    of Llama-3.2-1B" and [line.strip() for line in shown] == list(table.source)
    assert all(line.endswith((".", ")")) for line in shown)
    assert times_lines([], replace(table, source=("torch: 2.11.0", "driver: 580")))[1:] == [
        "         torch: 2.11.0", "         driver: 580",
    ]  # fmt: skip
