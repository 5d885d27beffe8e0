"""JSON that can be written again, and what is refused; the last net of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slideconvert.checkpoint.json_text import parse_json
from tests.conftest import Cli
from tests.helpers import pico

DEEP = "[" * 100_000
BAD = {
    "deep": DEEP + "]" * 100_000, "NaN": "[NaN]", "infinity": "[-Infinity]", "too large": "[1e400]",
    "surrogate": '["\\ud800"]', "surrogate key": '{"\\udc00": 1}', "digits": "9" * 5000, "cut": "{",
    "other bytes": b"\xff\xfe\xfd",
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_could_not_be_written_again_is_no_json(case: str) -> None:
    with pytest.raises(ValueError):
        parse_json(BAD[case])


@pytest.mark.parametrize(
    "value", [{}, [], 1, 1.5, "\u2028 \U0001f600", {"a": [None, True, {"b": 10**30}]}, 1e308, -0.0]
)
def test_everything_else_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("case", ["deep", "NaN", "too large", "surrogate"])
def test_such_files_are_refused_before_any_work(cli: Cli, tmp_path: Path, name: str, case: str) -> None:
    source = pico.write(tmp_path / "source", shards=2)
    text = (source / name).read_text()
    (source / name).write_text(text.rstrip()[:-1] + f', "more": {BAD[case]}}}')
    done = cli("convert", source, tmp_path / "out", "--method", "magnitude")
    lines = done.err.strip().splitlines()
    assert done.code == 2 and len(lines) == 1 and f"{name}: not valid JSON" in lines[0], done
    assert not (tmp_path / "out").exists()


def test_what_nobody_foresaw_is_one_line(cli: Cli, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exit code of its own; the traceback only for those who ask."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines\x1b[31m")

    monkeypatch.setattr("slideconvert.api.convert.make_plan", fail)
    words = ("plan", source, "--method", "magnitude")
    short, long = cli(*words), cli(*words, "-v")
    assert (short.code, long.code) == (70, 70)
    assert short.err.startswith("error: ZeroDivisionError: two lines\ufffd[31m (") and short.err.count("\n") == 1
    assert "Traceback" not in short.err and "Traceback" in long.err and "\x1b" not in long.err


def test_names_are_no_markup(cli: Cli, tmp_path: Path) -> None:
    """A record of others: what it says is shown as it is, and control characters are refused."""
    source, out = pico.write(tmp_path / "source"), tmp_path / "out"
    assert cli("convert", source, out, "--method", "magnitude").code == 0
    config = json.loads((out / "config.json").read_text())
    config["slidesparse_config"]["source"]["id"] = "org/[red]:smile:[/blue]"
    (out / "config.json").write_text(json.dumps(config))
    done = cli("inspect", out)
    assert done.code == 0 and "org/[red]:smile:[/blue]" in "".join(done.out.split()), done
    config["slidesparse_config"]["source"]["id"] = "org/\x1b[31mname"
    (out / "config.json").write_text(json.dumps(config))
    done = cli("inspect", out)
    assert done.code == 2 and "control characters" in done.err and "\x1b" not in done.err
