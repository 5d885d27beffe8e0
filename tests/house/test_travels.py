"""What travels beside the code: the container file, the citation, and a checkout that lost its symbolic link."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from slideconvert import __version__
from slideconvert.runtime.slidesparse_record import CODE_FILES
from tests.conftest import MAGNITUDE, Cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "slideconvert"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a container file. stage: the name of the stage that it stands in; "" before the first."""

    stage: str
    word: str
    value: str


def instructions(text: str) -> list[Instruction]:
    found, stage = [], ""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, value = line.partition(" ")
        if word == "FROM":
            stage = value.partition(" AS ")[2]
        if word:
            found.append(Instruction(stage, word, value.strip()))
    return found


def faults_of_from(value: str, stages: list[str]) -> Iterator[str]:
    image, _, name = value.partition(" AS ")
    if not name or name in stages:
        yield "a stage needs a name of its own"
    if image not in stages and not re.search(r":\d[\w.-]+$", image):
        yield "neither a stage nor an image with a version"
    stages.append(name)


def faults_of_copy(value: str, stages: list[str]) -> Iterator[str]:
    *sources, _ = [word for word in value.split() if not word.startswith("--")]
    origin = re.match(r"--from=(\S+)", value)
    if origin and origin[1] not in stages:
        yield f"no stage {origin[1]}"
    yield from (f"no {name} here" for name in sources if not origin and not (ROOT / name).exists())


def faults_of_run(value: str, stages: list[str]) -> Iterator[str]:
    if re.search(r"pip (install|wheel)", value) and "--no-cache-dir" not in value:
        yield "keeps the cache of pip in the image"
    if "pip install" in value and " -c " not in value:
        yield "installs without the pins"
    if "apt-get install" in value and not ("--no-install-recommends" in value and "rm -rf" in value):
        yield "leaves packages and lists that nobody needs"


def faults_of_program(value: str, stages: list[str]) -> Iterator[str]:
    if not value.startswith("["):
        yield "through a shell, which gets the signals instead of slideconvert"


def no_faults(value: str, stages: list[str]) -> Iterator[str]:
    yield from ()


RULES = {
    **{"FROM": faults_of_from, "COPY": faults_of_copy, "RUN": faults_of_run},
    **dict.fromkeys(("ENTRYPOINT", "CMD"), faults_of_program),
    **dict.fromkeys(("ARG", "ENV", "WORKDIR", "USER"), no_faults),
}
"""By instruction: the faults of a value behind the stages so far. A container file here needs no other instructions."""


def lint(text: str) -> list[str]:
    """The faults of a container file, each with its instruction."""
    steps = instructions(text)
    arguments = dict(step.value.split("=", 1) for step in steps if step.word == "ARG")
    stages: list[str] = []
    faults = []
    for step in steps:
        value = re.sub(r"\$\{(\w+)\}", lambda name: arguments.get(name[1], name[0]), step.value)
        found = [*(["an argument without a default"] if "${" in value else []), *RULES[step.word](value, stages)]
        faults += [f"{step.word} {value}: {fault}" for fault in found]
    users = [step.value for step in steps if step.word == "USER" and step.stage == stages[-1]]
    return faults if users and users[-1] not in ("root", "0") else [*faults, "the last stage runs as root"]


CONTAINER = (ROOT / "Containerfile").read_text()


def test_the_container_file_has_no_faults() -> None:
    assert lint(CONTAINER) == []
    for variant in ("cpu", "cuda"):
        assert lint(CONTAINER.replace("VARIANT=cpu", f"VARIANT={variant}")) == []
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert set(re.findall(r"^ARG TORCH=(.+)$", CONTAINER, re.MULTILINE)) == {pins["torch"]}


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("3.11-slim-bookworm", "latest", "neither a stage nor an image with a version"),
        ("VARIANT=cpu", "VARIANT=rocm", "neither a stage nor an image with a version"),
        ("ARG VARIANT=cpu\n", "", "an argument without a default"),
        ("COPY recipes recipes", "COPY recipe recipes", "no recipe here"),
        ("--from=wheel", "--from=wheels", "no stage wheels"),
        (
            "pip install --no-cache-dir -c /tmp/constraints.txt /tmp/wheel",
            "pip install --no-cache-dir /tmp/wheel",
            "pins",
        ),
        ("--no-install-recommends ", "", "lists that nobody needs"),
        ("USER slide\n", "", "runs as root"),
        ('ENTRYPOINT ["slideconvert"]', "ENTRYPOINT slideconvert", "through a shell"),
    ],
)
def test_faults_of_a_container_file_are_found(right: str, wrong: str, fault: str) -> None:
    assert right in CONTAINER
    assert [found for found in lint(CONTAINER.replace(right, wrong)) if fault in found]


def test_the_wheel_of_the_container_has_all_that_the_archives_hold() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    copied = {word for step in instructions(CONTAINER) if step.stage == "wheel" for word in step.value.split()}
    assert set(build["targets"]["sdist"]["only-include"]) <= copied


@pytest.mark.parametrize("answers", ["podman", "docker", ""])
def test_the_image_is_built_and_started_where_an_engine_runs(tmp_path: Path, answers: str) -> None:
    """A client whose service does not answer is no engine."""
    for name in ("podman", "docker"):
        body = f'[ "$1" = ps ] && exit {int(name != answers)}\necho {name} "$@"\n'
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / name).chmod(0o755)
    command = ["make", "--no-print-directory", "-C", str(ROOT), "image"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    built = [f"{answers} build -f Containerfile -t slideconvert .", f"{answers} run --rm slideconvert doctor"]
    none = ["neither podman nor docker runs here: tests alone check the Containerfile"]
    assert done.returncode == 0 and done.stdout.splitlines() == (built if answers else none)


def test_the_citation_is_of_this_version_and_names_nobody_else() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], __version__)
    assert citation["license"] == project["license"] and citation["authors"] == project["authors"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what its format requires


def demo(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    """examples/demo.py with a stand-in for slideconvert, whose main is `program`."""
    stand_in = tmp_path / "stand-in" / "slideconvert"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "cli.py").write_text(f"import sys\n\ndef main():\n    {program}\n")
    command = [sys.executable, ROOT / "examples" / "demo.py", tmp_path / "out"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(stand_in.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_the_demo_says_each_stage_before_it_begins_and_when_it_is_done(tmp_path: Path) -> None:
    lines = demo(tmp_path, 'print("runs", sys.argv[1], flush=True); sys.exit(0)').stdout.splitlines()
    found = [line for line in lines if re.search(r"^\[\d|^runs", line)]
    commands = ("convert", "relayout", "verify", "eval", "generate")
    assert len(found) == 3 * len(commands)
    for number, command in enumerate(commands, 1):
        begins, runs, done = found[3 * number - 3 : 3 * number]
        assert begins.startswith(f"[{number}/5] {command}: ") and runs == f"runs {command}"
        assert re.fullmatch(rf"\[{number}/5\] done in \d+ s, \d+ s in all", done)


def test_the_demo_ends_where_a_stage_fails(tmp_path: Path) -> None:
    done = demo(tmp_path, 'sys.exit(3 * (sys.argv[1] == "verify"))')
    assert done.returncode == 3 and "[3/5] verify" in done.stdout
    assert "[4/5]" not in done.stdout and "outputs are in" not in done.stdout


@pytest.fixture
def linkless(tmp_path: Path) -> Path:
    """A checkout as Git writes it without symbolic links: slideconvert/kernels is a text file."""
    skipped = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(PACKAGE, tmp_path / "checkout" / "slideconvert", ignore=skipped)
    shutil.copytree(ROOT / "kernels", tmp_path / "checkout" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "checkout" / "recipes")
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    (tmp_path / "checkout" / "slideconvert" / "kernels").write_text(str(link.readlink()))
    return tmp_path / "checkout"


def run(checkout: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """slideconvert of a checkout, as a process of its own."""
    command = [sys.executable, "-m", "slideconvert", *map(str, words)]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


def test_a_checkout_without_links_writes_the_same_checkpoint(
    cli: Cli, source: Path, linkless: Path, tmp_path: Path
) -> None:
    done = run(linkless, "convert", source, tmp_path / "out", *MAGNITUDE, "-q")
    assert done.returncode == 0, done.stderr
    assert cli("convert", source, tmp_path / "here", *MAGNITUDE, "-q").code == 0
    kernels = {path.relative_to(tmp_path / "here") for path in (tmp_path / "here" / "kernels").rglob("*.py")}
    assert kernels
    for name in (Path("config.json"), *map(Path, CODE_FILES), *kernels):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_package_without_the_kernels_says_so(linkless: Path) -> None:
    shutil.rmtree(linkless / "kernels")
    done = run(linkless, "--version")
    assert done.returncode and "slideconvert/kernels is a text file" in done.stderr and "core.symlinks" in done.stderr
