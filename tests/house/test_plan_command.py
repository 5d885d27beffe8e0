"""`plan` in place of `convert`: the same words, the same refusals, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import slideconvert
from slideconvert.cli import find_command
from slideconvert.cli.options import HeadedOption
from slideconvert.errors import InputError
from slideconvert.report.summary import size
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO, TEXT

MAGNITUDE = ("--method", "magnitude")


def parameters(name: str) -> dict[str, dict[str, object]]:
    """All that click knows of a command's parameters, by name, and the headings that we add."""
    command = find_command(name)
    assert command is not None
    found = {}
    for one in command.params:
        about = one.to_info_dict()
        assert one.name is not None and one.name not in found
        found[one.name] = {**about, "heading": one.heading if isinstance(one, HeadedOption) else ""}
    return found


def test_plan_has_the_parameters_of_convert() -> None:
    """Each of them, with spelling, type, choices, default, help and heading; OUT alone may be left out. Besides, there
    are those of time alone."""
    planned, converted = parameters("plan"), parameters("convert")
    assert [planned.pop(name)["heading"] for name in ("probe", "ranks")] == ["Time", "Time"]
    assert list(planned) == list(converted) and len(converted) > 45
    out, required = planned.pop("out"), converted.pop("out")
    assert planned == converted
    assert (out["required"], required["required"]) == (False, True)
    assert {**out, "required": True} == {**required, "required": True}


def test_the_options_of_the_functions_are_the_same() -> None:
    planned = slideconvert.PlanOptions.options()
    assert [one for one in planned if one.heading != "Time"] == slideconvert.ConvertOptions.options()


@pytest.mark.parametrize(
    "words",
    [
        ("--pattern", "2_6", "--text", TEXT, "--sequences", 2, "--max-kl", 9, "--no-verify", "--device", "cuda:7"),
        ("--overwrite", "--shard-gb", 1, "--layout", "dense"),
        ("--resume", "-v"),
        ("--density", 0.7, "--samples", 8, "--calibration", TEXT, "--json"),
    ],
    ids=lambda words: str(words[0]),
)
def test_any_words_of_convert_can_be_planned(cli: Cli, source: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    before = pico.files(tmp_path)
    done = cli("plan", source, tmp_path / "out", *MAGNITUDE, *words)
    assert done.code == 0 and done.out, done.err
    assert pico.files(tmp_path) == before and not (tmp_path / "out").exists()


def test_plan_says_what_follows_the_weights(cli: Cli, source: Path, tmp_path: Path) -> None:
    words = (source, tmp_path / "out", *MAGNITUDE, "--text", TEXT, "--sequences", 2, "--max-kl", 0.5)
    steps = ["read back and check every weight", f"measure the perplexity on {TEXT}, 2 sequences at most"]
    steps.append("publish nothing with a KL divergence above 0.5")
    assert json.loads(cli("plan", *words, "--json").out)["then"] == steps
    shown = " ".join(cli("plan", *words, "--no-verify").out.split())
    assert "then NOT VERIFIED (--no-verify) then measure the perplexity on" in shown
    assert cli("plan", *words, "-q") == (0, "", "")


def test_plan_refuses_what_convert_refuses(cli: Cli, source: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for words in (
        (source, taken),
        (source, taken, "--overwrite"),
        (source, source, "--overwrite"),
        (source, tmp_path / "out", "--resume", "--overwrite"),
        (source, tmp_path / "out", "--pattern", "2_8", "--density", 0.7),
        (source, tmp_path / "out", "--target-speedup", 1.2),
        (source, tmp_path / "out", "--target-speedup", 9, "--gpu", "a100"),
        (source, tmp_path / "out", "--density", 0.3),
        (source, tmp_path / "out", "--push", "org/model", "--no-verify"),
        (source, tmp_path / "out", "--device", "tpu"),
    ):
        planned, converted = (cli(name, *words, *MAGNITUDE) for name in ("plan", "convert"))
        assert planned.code == converted.code == 2 and planned.err == converted.err, words
    assert pico.files(taken) == {"mine.txt": b"mine"}


def test_a_finished_output_can_be_planned_again_and_resumed(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("convert", source, out, *MAGNITUDE, "-q").code == 0
    assert "is not an empty folder" in cli("plan", source, out, *MAGNITUDE).err
    before = pico.files(out)
    assert cli("plan", source, out, *MAGNITUDE, "--resume").code == 0
    assert cli("plan", source, out, *MAGNITUDE, "--overwrite").code == 0
    assert pico.files(out) == before
    words = (source, out, *MAGNITUDE, "--resume", "--pattern", "2_4")
    planned, converted = (cli(name, *words) for name in ("plan", "convert"))
    assert planned.code == 2 and planned.err == converted.err and "other settings" in planned.err
    with pytest.raises(InputError, match="not an empty folder"):
        slideconvert.plan(source, slideconvert.PlanOptions(method="magnitude"), out)


def test_the_plan_of_a_target_is_the_best_for_equal_linears(cli: Cli) -> None:
    words = ("plan", DEMO, *MAGNITUDE, "--json")
    made = json.loads(cli(*words, "--density", 0.75).out)
    assert {linear["pattern"] for linear in made["linears"]} == {"2:8"}
    assert any("convert measures errors" in note for note in made["notes"])
    fast = json.loads(cli(*words, "--target-speedup", 1.2, "--gpu", "h200").out)
    assert 1.2 <= fast["expected"]["speedup"] < 1.24, fast["expected"]
    assert {one["pattern"] for one in fast["linears"]} == {"2:4", "2:inf"}
    assert not any("convert measures errors" in note for note in json.loads(cli(*words).out)["notes"])


def test_memory_follows_the_options_of_computing(cli: Cli) -> None:
    words = ("plan", DEMO, "--calibration", TEXT, "--samples", 64, "--length", 128)

    def told(*more: object) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = json.loads(cli(*words, *more, "--json").out)
        return found

    usual = told()["calibration_memory"]
    assert told("--batch-tokens", 128)["calibration_memory"]["batch"] * 64 == usual["batch"]
    assert told("--precision", "float32")["calibration_memory"]["hidden"] > usual["hidden"]
    assert told("--device", "cpu")["calibration_memory"]["hidden"] > usual["hidden"]  # inner states too
    on_disk = told("--keep-on", "disk")
    assert on_disk["disk"]["hidden"] == usual["hidden"] and told()["disk"]["hidden"] == 0
    shown = " ".join(cli(*words, "--keep-on", "disk", "--device", "cuda").out.split())
    assert "of hidden states on disk" in shown and "beside the GPU" in shown
    assert "GPU about" not in " ".join(cli(*words, "--device", "cpu").out.split())
    end = told("--preset", "quality")["calibration_memory"]["end_training"]
    trained = " ".join(cli(*words, "--preset", "quality", "--device", "cuda").out.split())
    assert f"), and {size(end['host'])} of CPU memory with --offload" in trained
    assert "), and" not in " ".join(cli(*words, "--device", "cuda").out.partition("with --offload")[0].split())
    assert "GPU with --offload" in " ".join(cli(*words, "--offload").out.split())


def test_plan_without_an_output_names_what_needs_one(cli: Cli, source: Path) -> None:
    for flag in ("--resume", "--overwrite"):
        refused = cli("plan", source, *MAGNITUDE, flag)
        assert refused.code == 2 and f"{flag} has no effect: no output is named (name the folder OUT" in refused.err
