"""Tables and summaries in narrow terminals: every line fits, no word is broken, and what is missing is named."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from slideconvert.cli.columns import LEAST, Column, Table, linear_name, path_name, table, wrapped
from slideconvert.cli.common import show
from slideconvert.cli.progress import _bars
from slideconvert.cli.tables import inspect_summary
from slideconvert.errors import UNKNOWN
from slideconvert.report.inspect import Inspection, LinearFacts
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico

PROSE = "plain torch: the device is cpu, and nothing else runs there"
NAMES = [f"model.layers.{number}.self_attn.{name}_proj" for number in (0, 11) for name in "qkvo"]
Shown = Callable[[Table | str, int], str]


def wide() -> Table:
    made = table(
        "Linears of a model",
        [Column("linear", short=linear_name), Column("scheme", 1), "why"],
        [Column("shape", 2), "output error", Column("size", 3)],
    )
    for name in NAMES:
        made.add_row(name, "int8", PROSE, "4096 × 11008", "0.1234", "45.1 MB")
    return made


@pytest.fixture
def at(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What `show` prints in a number of columns."""

    def shown(what: Table | str, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        capfd.readouterr()
        show(what)
        return capfd.readouterr().out

    return shown


@pytest.mark.parametrize("columns", range(40, 180, 5))
def test_no_line_is_too_wide_and_no_word_is_broken(at: Shown, columns: int) -> None:
    text = at(wide(), columns)
    words = text.split()
    assert all(len(line) <= columns for line in text.splitlines())
    assert {"linear", "why", "output", "error", "0.1234", *PROSE.split()} <= set(words)
    assert set(NAMES) <= set(words) or {linear_name(name) for name in NAMES} <= set(words)
    told = text.partition("left out in")[2].partition("(")[0]
    for name, cell in (("scheme", "int8"), ("shape", "11008"), ("size", "MB")):
        assert (cell in words) != (name in told), name


def test_names_are_shortened_before_columns_are_left_out_by_priority(at: Shown) -> None:
    seen = [at(wide(), columns) for columns in range(180, 25, -1)]
    left_out = [" ".join(text.split()).partition("columns: ")[2].partition(" (")[0] for text in seen]
    assert list(dict.fromkeys(left_out)) == ["", "size", "shape, size", "scheme, shape, size"]
    assert NAMES[0] in seen[0] and NAMES[0] not in seen[left_out.index("size") - 1]


def test_words_wider_than_the_terminal_show_their_ends(at: Shown) -> None:
    made = table("Files", ["file", "state"], ["bytes"])
    made.add_row("a" * 30 + "middle" + "z" * 30, "new", "123,456")
    text = at(made, 40)
    assert all(len(line) <= 40 for line in text.splitlines())
    (cut,) = [word for word in text.split() if "…" in word]
    assert len(cut) >= LEAST and set(cut.partition("…")[0]) == {"a"} and set(cut.partition("…")[2]) == {"z"}
    assert "new" in text.split() and "123,456" in text.split()


def test_summaries_are_broken_between_words_below_their_label(at: Shown) -> None:
    path = "/home/somebody/" + "a-long-name/" * 6
    text = at(f"source   {path}\nnote     one two three four five six seven eight nine ten eleven twelve", 60)
    assert path in text.split()
    assert "\n         " in text.partition("note")[2] and all("-" not in line[-1:] for line in text.splitlines())
    assert wrapped("a\n\nb", 60) == "a\n\nb"


def test_columns_of_numbers_that_nobody_knows_are_not_shown(at: Shown) -> None:
    made = table("Patterns", ["pattern", "note"], ["speed-up", "error"])
    for pattern in ("2:4", "2:6"):
        made.add_row(pattern, UNKNOWN, UNKNOWN, "0.1")
    assert at(made, 60).splitlines()[2].split() == ["pattern", "note", "error"]
    made.add_row("2:8", UNKNOWN, "1.2", "0.1")
    assert at(made, 60).splitlines()[2].split() == ["pattern", "note", "speed-up", "error"]


def test_tables_that_follow_each_other_stand_apart(at: Shown) -> None:
    assert "left out" in at(wide(), 45) and at(wide(), 45).endswith(")\n\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bars_keep_their_figures_beside_long_names(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=columns, color_system=None)
    with _bars(console) as tell:
        tell("/home/somebody/models/a-model-of-a-long-name (14500 MB on disk)", 1, 1)
    last = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue()).strip().splitlines()[-1]
    assert re.fullmatch(r"…/models/a-model-of.* ━{10,40} 100% 0:00:00", last) and len(last) <= columns


def test_errors_are_broken_between_words_in_a_terminal_alone(tmp_path: Path) -> None:
    """A log keeps a line for each, which tools can read."""
    columns = 60
    command = [sys.executable, "-m", "slideconvert", "convrt"]
    env = {**os.environ, "COLUMNS": str(columns)}
    logged = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path).stderr
    terminal, end = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=end, env=env, cwd=tmp_path)
    os.close(end)
    lines = os.read(terminal, 4096).decode().splitlines()
    os.close(terminal)
    assert done.returncode == 2 and logged.count("\n") == 1 and len(logged) > columns
    assert len(lines) > 1 and all(len(line) <= columns for line in lines) and " ".join(lines) == logged.strip()


def test_short_names() -> None:
    assert linear_name("model.layers.0.self_attn.q_proj") == "0.q_proj"
    assert linear_name("lm_head") == linear_name("model.lm_head") == "lm_head"
    assert path_name("/home/me/models/out") == "…/models/out"
    assert path_name("org/model") == "org/model" and path_name("out") == "out" and path_name("/out") == "/out"


@pytest.mark.parametrize("columns", [80, 60])
def test_commands_fit_in_narrow_terminals(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Of every linear too; but for paths, which stay whole to be copied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = [
        cli(*words).out
        for words in (
            ("convert", *MAGNITUDE, "source", "out", "-v"),
            ("plan", *MAGNITUDE, "source", "-v"),
            ("inspect", "out"),
            ("verify", "out", "-v"),
            ("doctor", "out", "--device", "cpu"),
        )
    ]
    names = [linear_name(name) for name in pico.weights() if name.endswith("_proj.weight")]
    assert names
    for text in shown:
        assert text
        for line in text.splitlines():
            assert len(line) <= columns or "/" in line, line
    for text in shown[:4]:
        assert "2.down_proj" in text and "mlp.down_proj" not in text
    assert "shard(s)" not in shown[1]
    changes = [re.findall(r"2\.down_proj .*?(\d+\.\d\d%)", shown[at]) for at in (2, 3)]
    assert changes[0] and "change" in shown[2] and "error" not in shown[2]
    assert changes[1] in ([], changes[0])  # a narrow terminal leaves it out


def test_a_recipe_is_told_in_words() -> None:
    recipe = {"scheme": "int8", "calibration": {"text": "my.jsonl", "samples": 32}, "layout": "slide"}
    one = LinearFacts("a", (8, 8), "int8", False, "2:8", "hessian", "slide", 16, None, 64)
    found = Inspection("out", "llama", "slide", {}, recipe, None, 64, 1, (one,))
    line = next(line for line in inspect_summary(found).splitlines() if line.startswith("recipe"))
    assert line == "recipe   scheme: int8, calibration (text: my.jsonl, samples: 32), layout: slide"
