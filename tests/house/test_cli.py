"""The commands as people and scripts meet them: help, JSON, quiet and verbose, exit codes, speed of --help."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slideconvert import cli as cli_package
from slideconvert.cli import COMMANDS, GROUPS, find_command
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico

ROOT = Path(__file__).parents[2]


def test_every_command_explains_itself_and_lists_recipes_without_loading_torch() -> None:
    script = (
        "import sys\nfrom slideconvert.cli import COMMANDS, GROUPS, find_command, group\n"
        "import click\n"
        "context = click.Context(group, info_name='slideconvert')\n"
        "pages = [group.get_help(context)]\n"
        "pages += [find_command(n).get_help(click.Context(find_command(n))) for n in (*COMMANDS, *GROUPS)]\n"
        "assert all(len(page) > 100 for page in pages)\n"
        "for words in ([], ['int8-2of8']):\n"
        "    find_command('recipes').main(words, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'datasets', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_and_unknown_words_fail(cli: Cli) -> None:
    for group in ("", *GROUPS):
        shown = cli(*group.split(), "--help").out
        inside = [name.removeprefix(group).split()[0] for name in COMMANDS if name.startswith(group)]
        assert inside and not [name for name in inside if f"  {name}" not in shown]
    for words in (("convrt",), ("bench",), ("bench", "kernl"), ("convert", "--no-such-option"), ("convert",)):
        assert cli(*words).code == 2


def test_version(cli: Cli) -> None:
    from slideconvert import __version__

    assert cli("--version").out.strip() == f"slideconvert, version {__version__}"


def test_plan_counts_without_writing(cli: Cli, source: Path, tmp_path: Path) -> None:
    before = pico.files(tmp_path)
    plan = json.loads(cli("plan", *MAGNITUDE, source, "--pattern", "2_6", "--json").out)
    down = next(linear for linear in plan["linears"] if linear["name"] == "model.layers.0.mlp.down_proj")
    # 88 columns are 15 groups of 6 (the last ragged), 2 windows of 4 lanes each: 120, padded to 128.
    assert down["slid_columns"] == 128 and down["bytes_before"] == 2 * 64 * 88
    assert down["bytes_after"] == 64 * (64 + 16) + 4 * 64
    assert plan["bytes_before"] == sum(tensor.nbytes for tensor in pico.weights().values())
    text = cli("plan", *MAGNITUDE, source, "--pattern", "2_6").out
    assert "1.50×" in text and "down_proj" in text
    assert "model.layers.2.mlp.down_proj" in cli("plan", *MAGNITUDE, source, "--pattern", "2_6", "-v").out
    assert pico.files(tmp_path) == before


def test_plan_promises_what_convert_does(cli: Cli, source: Path, tmp_path: Path) -> None:
    words = ("--scheme", "fp8", "--pattern", "2_10")
    plan = json.loads(cli("plan", *MAGNITUDE, source, *words, "--json").out)
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", *words).code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for promised, made in zip(plan["linears"], report["layers"], strict=True):
        for key in ("name", "shape", "scheme", "pattern", "bytes_before", "bytes_after", "slid_columns"):
            assert promised[key] == made[key]
    assert plan["bytes_after"] == report["totals"]["file_bytes_after"]


def test_convert_speaks_to_people_and_machines(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    talkative = cli("convert", *MAGNITUDE, source, tmp_path / "a", "-v")
    assert "convert" in talkative.err and "verify" in talkative.err  # progress
    assert "model.layers.2.mlp.down_proj" in talkative.out and "re-read, intact" in talkative.out
    quiet = cli("convert", *MAGNITUDE, source, tmp_path / "b", "-q")
    assert quiet.code == 0 and not quiet.out and not quiet.err
    machine = cli("convert", *MAGNITUDE, source, tmp_path / "c", "--json")
    told = json.loads(machine.out)
    assert not machine.err and told["verified_tensors"] == len(pico.read(tmp_path / "c"))
    assert told["totals"]["weights"] == sum(t.numel() for n, t in pico.weights().items() if "_proj" in n)


def test_inspect_shows_ours_and_any_model(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "--pattern", "2_4").code == 0
    ours = json.loads(cli("inspect", tmp_path / "out", "--json").out)
    assert ours["layout"] == "slide" and ours["recipe"]["pattern"] == "2:4" and ours["source"]["id"] == "source"
    first = ours["linears"][0]
    assert first["pattern"] == "2:4" and first["zeros"] >= 64 * 64 // 2 and first["error"] > 0.1
    plain = json.loads(cli("inspect", source, "--json").out)
    assert plain["layout"] == "" and plain["linears"][0]["scheme"] == "bf16" and plain["linears"][0]["zeros"] < 10
    assert "50.0%" in cli("inspect", tmp_path / "out").out
    assert cli("inspect", tmp_path / "absent").code == 2


def test_doctor_reports_this_machine(cli: Cli) -> None:
    import torch

    told = json.loads(cli("doctor", "--json").out)
    assert told["packages"]["torch"] == torch.__version__ and len(told["gpus"]) == torch.cuda.device_count()
    assert told["advice"] or told["gpus"]
    assert "transformers" in cli("doctor").out


def test_doctor_explains_how_a_checkpoint_is_run(cli: Cli, source: Path, tmp_path: Path) -> None:
    rules = tmp_path / "recipe.yaml"
    rules.write_text(
        "scheme: int8\npattern: '2:8'\nmethod: magnitude\nrules:\n  - {match: '*.down_proj', pattern: '2:6'}\n"
    )
    assert cli("convert", source, tmp_path / "out", "--recipe", rules).code == 0
    told = json.loads(cli("doctor", tmp_path / "out", "--device", "cpu", "--json").out)["linears"]
    assert {row["kind"]: (row["linears"], row["number"]) for row in told} == {
        "64x64 int8 2:8": (["q_proj", "o_proj"], 6),
        "32x64 int8 2:8": (["k_proj", "v_proj"], 6),
        "88x64 int8 2:8": (["gate_proj", "up_proj"], 6),
        "64x88 int8 2:6": (["down_proj"], 3),
    }
    assert {(row["backend"], row["why"]) for row in told} == {("reference", "plain torch: the device is cpu")}
    shown = cli("doctor", tmp_path / "out", "--device", "cpu").out
    assert "64x88 int8 2:6" in shown and "reference" in shown


def test_doctor_lists_what_runs_on_each_device(cli: Cli) -> None:
    told = json.loads(cli("doctor", "--json").out)["backends"]
    if "cpu" in told:
        assert told["cpu"]["reference"] == "" and "needs a CUDA device" in told["cpu"]["cusparselt"]
    else:
        assert told["cuda:0"]["reference"] == ""


def test_doctor_never_prints_the_token(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    assert json.loads(cli("doctor", "--json").out)["huggingface_token"] is True
    assert "secret" not in cli("doctor").out


def test_recipes_lists_what_recipe_takes(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder. What it prints of one is a recipe file."""
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    assert [name for name, _ in re.findall(r"^(\S+)  +(\S.+)", cli("recipes").out, re.MULTILINE)] == names
    told = json.loads(cli("recipes", "--json").out)["recipes"]
    assert list(told) == names and told["int8-2of6"]["pattern"] == "2:6" and told["int8-2of6"]["about"]
    (tmp_path / "mine.yaml").write_text(cli("recipes", "int8-2of6").out)
    plans = [json.loads(cli("plan", source, "--recipe", name, "--json").out) for name in ("int8-2of6", "mine.yaml")]
    assert plans[0] == plans[1] and plans[0]["linears"][0]["pattern"] == "2:6"
    refused = cli("recipes", "int8-2of7")
    assert refused.code == 2 and "did you mean int8-2of" in refused.err


def test_interruption_prints_how_to_resume(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slideconvert.convert import pipeline

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "convert_linear", interrupted)
        outcome = cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q")
    assert outcome.code == 130 and "--resume" in outcome.err
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q", "--resume").code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_how_it_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_package, "group", interrupted)
    outcome = cli("-v", *name.split(), "SOURCE", "--seed", "7")
    command = find_command(name)
    assert command is not None
    resumes = name != "plan" and any("--resume" in parameter.opts for parameter in command.params)
    way = "; run it again to go on" if name in cli_package.AGAIN else "; continue it with --resume" * resumes
    assert (outcome.code, outcome.err) == (130, f"interrupted{way}\n")


def test_a_terminated_conversion_prints_how_to_resume(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm, containers and `timeout` send SIGTERM."""
    from slideconvert.convert import pipeline

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_check_source", lambda plan: os.kill(os.getpid(), signal.SIGTERM))
        outcome = cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q")
    assert outcome.code == 130 and "--resume" in outcome.err
    assert signal.getsignal(signal.SIGTERM) is before
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q", "--resume").code == 0


def test_a_log_has_a_line_for_each_stage(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slideconvert.cli.progress.QUIET", 0.0)
    lines = cli("convert", *MAGNITUDE, source, tmp_path / "out").err.splitlines()
    for stage in ("import", "plan", "check", "convert", "finish", "verify"):
        assert [line for line in lines if line.startswith(f"{stage} done in ")], stage
    assert "━" not in "".join(lines)


FRAMES = ("convert_command", "run", "convert_source", "convert", "in_order", "convert_linear", "compress_directly")
"""From the command to the method that changes a weight, data-free; `in_order` hands linears to threads."""


def test_few_frames_lead_from_the_command_to_the_changed_weight(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONTRIBUTING.md names them."""
    import slideconvert
    from slideconvert.cli import group
    from slideconvert.core.patterns import BlockPattern

    class Reached(Exception):
        pass

    def stop(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(BlockPattern, "select", stop)
    with pytest.raises(Reached) as reached:
        group(["convert", str(source), str(tmp_path / "out"), *MAGNITUDE, "-q"], standalone_mode=False)
    package = str(Path(slideconvert.__file__).parent)
    frames = [entry.frame.code.name for entry in reached.traceback if str(entry.path).startswith(package)]
    assert tuple(frames[frames.index("convert_command") : frames.index("magnitude")]) == FRAMES
    told = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{name}`" in told for name in FRAMES)
