"""The options of all commands: words from the registries, headings, and no option that silently does nothing."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import slideconvert
from slideconvert.api.settings import settings_of
from slideconvert.cli import COMMANDS, find_command
from slideconvert.core import choices
from slideconvert.core.schemes import SCHEMES
from slideconvert.prune import METHODS
from tests.conftest import Cli
from tests.helpers.demo import TEXT


def commands() -> dict[str, click.Command]:
    found = {name: find_command(name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command}


def flags(command: click.Command) -> set[str]:
    """The long names of a command's options."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}


def test_the_words_of_the_help_are_those_of_the_registries() -> None:
    assert tuple(SCHEMES) == choices.SCHEMES
    assert tuple(METHODS) == (*choices.PRUNING, *choices.ROUNDING)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_a_heading(name: str) -> None:
    command = commands()[name]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.help.endswith((".", "]")), option.name
            assert getattr(option, "heading", ""), option.name
    page = command.get_help(click.Context(command))
    assert "Display:" in page and "Options:" not in page


DISPLAY = {"--json": "--quiet --json", "--verbose": "--json --verbose", "--quiet": "--verbose --quiet"}
RESULT = {"--json": "--json --quiet", "--quiet": "--quiet --json"}
HUB = {"--revision": "--revision main", "--source-cache": "--source-cache .", "--low-disk": "--low-disk"}
OUTPUT = {
    "--text-column": "--text-column body",
    "--sequences": "--sequences 4",
    "--max-kl": "--max-kl 1",
    "--max-output-error": "--max-output-error 1",
}
OUTPUT |= {"--text-column": "--text-column body"}
CALIBRATION = {"--calibration": f"--calibration {TEXT}", "--samples": "--samples 8", "--length": "--length 64"}
CALIBRATION |= {"--seed": "--seed 1", "--weights": "--weights 1", "--column": "--column text"}
COMPUTE = {"--keep-on": "--keep-on disk", "--batch-tokens": "--batch-tokens 64", "--precision": "--precision float32"}
ROW_CAP = {"--row-cap": "--row-cap 2"}
SIZES = {"--group-size": "--group-size 16"}
NUMBERS = SIZES | {"--symmetric": "--symmetric", "--asymmetric": "--asymmetric"}
CODES = {"--codes": "--codes full"}
TRAINING = {"--block-epochs": "--block-epochs 1", "--end-epochs": "--end-epochs 1", "--generated": "--generated 1"}
SMOOTH = {"--smooth": "--smooth", "--no-smooth": "--no-smooth"}
OFFLOAD = {"--offload": "--offload"}
TOKENS = {"--tokens": "--tokens 64"}
TIMES = TOKENS | {"--gpu": "--gpu a100", "--speed-table": "--speed-table times.csv"}
TASKS = {"--limit": "--limit 1", "--shots": "--shots 1", "--task-path": "--task-path .", "--verbose": "--verbose"}
TEXTLESS = {"--sequences": "--sequences 4 --tasks a", "--length": "--length 64 --tasks a"}
TEXTLESS |= {"--by-position": "--by-position --tasks a", "--keep-base": "--keep-base base --tasks a"}
TEXTLESS |= {"--text-column": "--text-column body --tasks a", "--served": "--served http://127.0.0.1:1 --tasks a"}
ALONE = {"--top": f"--top 5 --text {TEXT}", "--base-gb": f"--base-gb 1 --text {TEXT}"}
UNSERVED = {"--served-model": f"--served-model a --text {TEXT}", "--api-key-env": f"--api-key-env A --text {TEXT}"}
CONVERT = {**DISPLAY, **HUB, **OUTPUT, **CALIBRATION, **COMPUTE, **OFFLOAD, **ROW_CAP, **NUMBERS, **CODES, **TRAINING}
CONVERT |= {"--public": "--public", **SMOOTH}
FOLDER = {"--resume": "--resume", "--overwrite": "--overwrite"}

GREEDY = {"--seed": "--seed 1", "--top-p": "--top-p 0.5 --temperature 0", "--top-k": "--top-k 5 --temperature 0"}

UNUSED: dict[str, tuple[str, dict[str, str]]] = {
    "download": ("org/model", DISPLAY),
    "plan": ("SOURCE --method magnitude", CONVERT | TOKENS | FOLDER | {"--ranks": "--ranks 2"}),
    "convert": ("SOURCE OUT --method magnitude", CONVERT | TIMES),
    "rotate": ("SOURCE OUT", {**DISPLAY, **HUB}),
    "allocate": ("SOURCE OUT --density 0.8", {**DISPLAY, **TIMES, "--revision": "--revision main"}),
    "sparsify": (
        "SOURCE OUT --method magnitude",
        {**DISPLAY, **HUB, **OUTPUT, **CALIBRATION, **COMPUTE, **OFFLOAD, **ROW_CAP, **SIZES, **TRAINING},
    ),
    "quantize": ("SOURCE OUT", {**DISPLAY, **HUB, **OUTPUT, **CALIBRATION, **COMPUTE, **NUMBERS, **SMOOTH}),
    "slide": ("SOURCE OUT", {**DISPLAY, **HUB, **OUTPUT}),
    "relayout": ("SOURCE OUT --layout dense", {**DISPLAY, **OUTPUT}),
    "verify": ("SOURCE", {**DISPLAY, "--revision": "--revision main"}),
    "inspect": ("SOURCE", RESULT),
    "compare": (
        "SOURCE --baseline SOURCE",
        RESULT
        | {"--sequences": "--sequences 4", "--length": "--length 64", "--device": "--device cpu"}
        | {"--activations": "--activations float", "--tokens": "--tokens 64"},
    ),
    "eval": (
        "SOURCE",
        {**RESULT, **TEXTLESS, **ALONE, **UNSERVED} | {name: f"{given} --text {TEXT}" for name, given in TASKS.items()},
    ),
    "generate": ("SOURCE --prompt a", {**RESULT, **GREEDY, "--system": "--system a"}),
    "chat": ("SOURCE", GREEDY),
    "push": ("SOURCE org/model", {**DISPLAY, "--device": "--device cpu"}),
    "tune": (
        "OUT",
        RESULT
        | {"--ranks": "--ranks 2", "--model": "--model Qwen2.5-7B", "--shape": "--shape 8x8"}
        | {"--pattern": "--pattern 2:8", "--scheme": "--scheme int8"},
    ),
    "bench kernel": ("", RESULT),
    "bench layer": ("", RESULT),
    "bench serve": (
        "SOURCE",
        RESULT
        | {"--model": "--model Qwen2.5-7B", "--layers": "--layers 2", "--scheme": "--scheme int8"}
        | {"--pattern": "--pattern 2:4"},
    ),
    "bench compare": ("A B", {}),
    "recipes": ("", {}),
    "doctor": ("", {"--device": "--device cpu"}),
}
"""By command: a call, and by option how it is given so that it has no effect there."""

RECIPE = {"--preset", "--method", "--recipe", "--scheme"}
WEIGHTS = {"--pattern", "--sparsity", "--bits", "--layout", "--shard-gb"}
RUN = {"--device", "--resume", "--overwrite", "--no-verify", "--text"}
TARGET = {"--target-speedup", "--density", "--push"}
BENCH = {
    "--model",
    "--square",
    "--scheme",
    "--pattern",
    "--tokens",
    "--quick",
    "--host",
    "--budget",
    "--out",
    "--png",
    "--device",
}
SERVED = {"--memory", "--unfused", "--batch", "--prefill", "--mixed", "--rate", "--prompt", "--output", "--together"}
SERVED |= {"--preset", "--lengths", "--graphs"}
SERVED |= {"--limit", "--work"}
ALWAYS: dict[str, set[str]] = {
    "download": {"--revision"},
    "plan": {*RECIPE, *WEIGHTS, *RUN - FOLDER.keys(), *TARGET, "--gpu", "--speed-table", "--probe"},
    "convert": {*RECIPE, *WEIGHTS, *RUN, *TARGET},
    "rotate": {*CALIBRATION, *COMPUTE, "--device", "--resume", "--no-verify", "--pattern", "--parts", "--steps"},
    "allocate": {*RECIPE, *CALIBRATION, *COMPUTE, "--device", "--target-speedup", "--density"},
    "sparsify": {*RUN, "--preset", "--method", "--pattern", "--sparsity"},
    "quantize": {*RUN, "--scheme", "--bits", "--method"},
    "slide": {*RUN, "--pattern"},
    "relayout": {*RUN, "--layout"},
    "verify": {"--device", "--source"},
    "inspect": set(),
    "compare": {"--baseline", "--text", "--gpu", "--speed-table", "--out"},
    "eval": {"--text", "--tasks", "--device", "--activations"},
    "generate": {"--prompt", "--chat", "--temperature", "--max-new-tokens", "--device", "--activations"},
    "chat": {"--quiet", "--temperature", "--system", "--max-new-tokens", "--device", "--activations"},
    "push": {"--dry-run", "--public", "--revision", "--message", "--package", "--verify"},
    "tune": {"--host", "--budget", "--device"},
    "bench kernel": BENCH,
    "bench layer": BENCH,
    "bench serve": SERVED | {"--device", "--out", "--png", "--quick", "--budget"},
    "bench compare": {"--json"},
    "recipes": {"--json"},
    "doctor": {"--json"},
}
"""By command: the options that have an effect in every call that takes them."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_known_to_have_an_effect_or_to_be_refused(name: str) -> None:
    """A new option must say here in which call it has no effect, and be refused there."""
    assert flags(commands()[name]) == ALWAYS[name] | UNUSED[name][1].keys()
    assert not ALWAYS[name] & UNUSED[name][1].keys()


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, (_, unused) in UNUSED.items() for option in unused]
)
def test_an_option_without_effect_is_refused(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    call, unused = UNUSED[name]
    words = [{"SOURCE": source, "OUT": tmp_path / "out"}.get(word, word) for word in call.split()]
    refused = cli(*name.split(), *words, *unused[option].split())
    named = {"--asymmetric": "symmetric", "--no-smooth": "smooth"}.get(option, option.removeprefix("--"))
    assert refused.code == 2 and named in refused.err.replace("_", "-"), refused
    assert not (tmp_path / "out").exists()


CALIBRATED = ("--calibration", TEXT, "--samples", 8, "--length", 64)


@pytest.mark.parametrize("words", [("--method", "obs"), ("--preset", "balanced")], ids=" ".join)
def test_offload_is_refused_where_it_moves_nothing(
    cli: Cli, source: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    more = ("--offload", "--keep-on", "disk", "-q")
    refused = cli("convert", source, tmp_path / "out", *words, *CALIBRATED, *more)
    assert refused.code == 2 and "kept on disk, and nothing is trained end to end" in refused.err


@pytest.mark.parametrize(("words", "place"), [((), "cpu"), (("--keep-on", "disk"), "disk")], ids=["offload", "disk"])
def test_offload_moves_hidden_states_unless_told_where(words: tuple[str, ...], place: str) -> None:
    options = slideconvert.ConvertOptions(offload=True, keep_on=words[1] if words else None, device="cpu")
    assert settings_of(options).keep_on == place and settings_of(options).offload
    assert settings_of(slideconvert.ConvertOptions(device="cpu")).keep_on == "device"


@pytest.mark.parametrize("command", ["slide", "relayout", "verify", "quantize"])
@pytest.mark.parametrize("words", [("--offload",), ("--row-cap", 2), ("--target-speedup", 2)], ids=lambda w: w[0])
def test_options_of_other_commands_are_not_offered(cli: Cli, command: str, words: tuple[object, ...]) -> None:
    refused = cli(command, "a", "b", *words)
    assert refused.code == 2 and "No such option" in refused.err
