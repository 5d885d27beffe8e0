"""What commands answer to the shell, to scripts, and to misspelt words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from slideconvert.cli import COMMANDS, find_command
from slideconvert.cli.common import SCHEMA, Word
from slideconvert.core import choices
from slideconvert.runtime.slidesparse_record import LAYOUTS
from tests.conftest import MAGNITUDE, Cli


def completed(*words: str) -> list[tuple[str, str]]:
    """What the shell is told that the last of the words may become: kinds and values."""
    line = " ".join(("slideconvert", *words))
    asked = {"_SLIDECONVERT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    run = [sys.executable, "-m", "slideconvert"]
    done = subprocess.run(run, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    found = [line.partition(",") for line in done.stdout.splitlines()]
    return [(kind, value) for kind, _, value in found]


def test_the_shell_completes_commands_words_and_folders() -> None:
    assert completed("con") == [("plain", "convert")]
    assert completed("bench", "c") == [("plain", "compare")]
    assert completed("convert", "--scheme", "w4") == [("plain", "w4a16"), ("plain", "w4a8")]
    assert [value for _, value in completed("relayout", "--layout", "")] == list(LAYOUTS)
    assert ("plain", "h200") in completed("plan", "--gpu", "h")
    assert completed("convert", "exam") == [("file", "exam")]  # folders, and GGUF files
    assert completed("verify", "exam") == [("dir", "exam")]


def test_the_documented_line_sets_completion_up() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    for shell in ("bash", "zsh", "fish"):
        assert f"_SLIDECONVERT_COMPLETE={shell}_source slideconvert" in page
    asked = {"_SLIDECONVERT_COMPLETE": "zsh_source"}
    run = [sys.executable, "-m", "slideconvert"]
    done = subprocess.run(run, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert "_SLIDECONVERT_COMPLETE=zsh_complete slideconvert" in done.stdout


@pytest.mark.parametrize(
    ("words", "nearest"),
    [("convrt a b", "convert"), ("verfy a", "verify"), ("bench kernl", "kernel"), ("bench compre a b", "compare")],
)
def test_unknown_commands_suggest(cli: Cli, words: str, nearest: str) -> None:
    refused = cli(*words.split())
    assert refused.code == 2 and f"did you mean {nearest}?" in refused.err
    assert cli("zzzzzz").code == 2


WORDS = [
    (name, option.opts[0])
    for name in COMMANDS
    for option in getattr(find_command(name), "params", [])
    if isinstance(option.type, Word)
]


@pytest.mark.parametrize(("name", "flag"), WORDS)
def test_misspelt_words_are_answered_with_the_nearest_at_once(cli: Cli, tmp_path: Path, name: str, flag: str) -> None:
    command = find_command(name)
    assert command
    option = next(one for one in command.params if flag in one.opts)
    assert isinstance(option.type, Word)
    with click.Context(command) as context:
        if flag == "--gpu":  # a table of one's own may have others
            assert option.type.convert("mine", option, context) == "mine"
            return
        nearest = option.type.choices[0]
        misspelt = f"{nearest}x"
        assert nearest in option.make_metavar(context).split("|")
    refused = cli(*name.split(), "SOURCE", "OUT", flag, misspelt)
    assert refused.code == 2 and f"'{misspelt}' (did you mean " in refused.err
    assert f"use one of {', '.join(option.type.choices)}" in refused.err


def test_options_with_choices_are_found() -> None:
    assert {("convert", "--scheme"), ("relayout", "--layout"), ("eval", "--activations")} <= set(WORDS)
    assert tuple(next(o for o in find_command("convert").params if o.name == "scheme").type.choices) == choices.SCHEMES  # type: ignore[union-attr,attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    command = find_command(name)
    assert command and f"  slideconvert {name}" in command.get_help(click.Context(command))


REFUSED = {
    "an option": (("plan", "SOURCE", "--scheme", "int9"), "InputError", 2),
    "an input": (("inspect", "absent"), "InputError", 2),
    "usage": (("plan", "SOURCE", "--no-such-option"), "NoSuchOption", 2),
    "a command": (("convrt",), "InputError", 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scripts_are_told_errors_as_json(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words, kind, code = REFUSED[case]
    refused = cli(*words, "--json")
    told = json.loads(refused.out)
    assert told["schema"] == SCHEMA and refused.code == told["error"]["exit_code"] == code
    assert told["error"]["kind"] == kind and told["error"]["what"] in refused.err
    assert not cli(*words).out


def test_a_defect_is_told_as_json(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from slideconvert.cli import doctor

    def broken() -> None:
        raise ZeroDivisionError("halves")

    monkeypatch.setattr(doctor, "examine", broken)
    told = json.loads(cli("doctor", "--json").out)
    assert told["error"] == {"kind": "ZeroDivisionError", "what": "halves", "hint": "", "exit_code": 70}


def test_results_bear_the_version_of_their_schema(cli: Cli, source: Path, tmp_path: Path) -> None:
    for words in (("plan", *MAGNITUDE, source), ("convert", *MAGNITUDE, source, tmp_path / "out"), ("doctor",)):
        assert json.loads(cli(*words, "--json").out)["schema"] == SCHEMA
    for words in (("verify", tmp_path / "out"), ("inspect", tmp_path / "out")):
        assert json.loads(cli(*words, "--json").out)["schema"] == SCHEMA
