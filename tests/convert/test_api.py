"""The Python functions: the examples of their docstrings run, they do what the commands do, and print nothing."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import slideconvert
from slideconvert import ConvertOptions, PlanOptions, SparsifyOptions, VerifyOptions
from slideconvert.api import checkpoints, compare, convert, options
from slideconvert.cli import COMMANDS
from slideconvert.errors import InputError
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO, TEXT

EXAMPLES = [
    example
    for module in (convert, checkpoints, compare)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "out"
    slideconvert.convert(DEMO, out, ConvertOptions(scheme="int8", pattern="2:8", method="magnitude"))
    return out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.rpartition(".")[2])
def test_the_examples_of_the_docstrings_run(example: doctest.DocTest, converted: Path, tmp_path: Path) -> None:
    example.globs |= {name: getattr(slideconvert, name) for name in slideconvert.__all__ if "Options" in name}
    example.globs |= {"slideconvert": slideconvert, "model": DEMO, "dense": tmp_path / "dense", "text": str(TEXT)}
    example.globs["out"] = tmp_path / "out" if example.name.endswith(".convert") else converted
    lines: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=lines.append)
    assert result.attempted and not result.failed, "".join(lines)


def test_every_command_has_its_function() -> None:
    functions = {"eval": "evaluate"}
    for name in COMMANDS:
        if name not in ("doctor", "tune", "recipes"):  # they are about the machine, and the package
            assert functions.get(name, name.replace(" ", "_")) in slideconvert.__all__
    for name in slideconvert.__all__:
        assert getattr(slideconvert, name).__doc__


def test_functions_stay_functions_once_their_packages_are_imported() -> None:
    import slideconvert.convert.pipeline
    import slideconvert.plan.plan

    for name in ("convert", "plan", "verify", "evaluate", "allocate"):
        assert isinstance(getattr(slideconvert, name), Callable)  # type: ignore[arg-type]


def test_importing_is_cheap_and_installs_the_hook() -> None:
    script = (
        "import sys\nbefore = len(sys.meta_path)\nimport slideconvert\n"
        "assert len(sys.meta_path) == before + 1 and 'convert' in dir(slideconvert)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'click', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_functions_and_commands_write_the_same_bytes(
    cli: Cli, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    report = slideconvert.convert(
        source,
        tmp_path / "a",
        ConvertOptions(method="magnitude", scheme="fp8", pattern="2:6"),
        progress=lambda stage, done, total: steps.append(stage),
    )
    assert capfd.readouterr() == ("", "") and {"convert", "verify"} <= set(steps)
    words = ("--method", "magnitude", "--scheme", "fp8", "--pattern", "2_6", "-q")
    assert cli("convert", source, tmp_path / "b", *words).code == 0
    assert pico.files(tmp_path / "a") == pico.files(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "report.json").read_text())["totals"] == vars(report.totals)


def test_stages_make_what_convert_makes(source: Path, tmp_path: Path) -> None:
    slideconvert.sparsify(source, tmp_path / "1", SparsifyOptions(pattern="2:8", method="magnitude"))
    slideconvert.quantize(tmp_path / "1", tmp_path / "2")
    slideconvert.slide(tmp_path / "2", tmp_path / "3")
    slideconvert.convert(source, tmp_path / "whole", ConvertOptions(method="magnitude"))
    assert pico.read(tmp_path / "3").keys() == pico.read(tmp_path / "whole").keys()
    shard = "model.safetensors"
    assert (tmp_path / "3" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()


def test_errors_are_those_of_the_commands(cli: Cli, source: Path, tmp_path: Path) -> None:
    words = ConvertOptions(method="magnitude", samples=8)
    with pytest.raises(InputError, match="--samples has no effect") as refused:
        slideconvert.convert(source, tmp_path / "out", words)
    assert cli("convert", source, tmp_path / "out", "--method", "magnitude", "--samples", 8, "-q").err == (
        f"error: {refused.value}\n"
    )
    with pytest.raises(InputError, match="did you mean magnitude"):
        slideconvert.plan(source, PlanOptions(method="magnitute"))
    with pytest.raises(InputError, match="--revision belongs to --source"):
        slideconvert.verify(source, VerifyOptions(revision="main"))


def test_a_faulty_weight_is_found(converted: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(converted, tmp_path / "bad")
    shard = next((tmp_path / "bad").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0x40
    shard.write_bytes(data)
    assert slideconvert.verify(tmp_path / "bad").faults


def test_options_of_a_job_have_one_name_each() -> None:
    for job in (options.ConvertOptions, options.AllocateOptions, options.SparsifyOptions, options.EvaluateOptions):
        names = [one.flag for one in job.options()]
        assert len(names) == len(set(names))
