"""The rules of the house: who may import whom, who may print, that recipes work and documents do not rot."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from slideconvert.cli import COMMANDS
from slideconvert.recipe import load_recipe
from slideconvert.runtime.slidesparse_record import CODE_FILES
from tests import pico
from tests.conftest import MAGNITUDE, Cli
from tests.demo import DEMO, TEXT

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "slideconvert"

LAYERS = (
    ("errors", "progress", "runtime.slidesparse_record", "task_fence", "precision"),
    ("patterns", "schemes", "planes", "workers", "checkpoint.files", "checkpoint.shelf"),
    ("quantize", "prune.select", "snapshot", "checkpoint.format", "calibrate.settings"),
    (
        "prune.magnitude",
        "prune.block",
        "slide",
        "ternary",
        "measure",
        "checkpoint.reader",
        "checkpoint.staging",
        "checkpoint.rotation",
        "layers",
        "permute",
    ),
    ("prune.statistics", "prune.sweep", "prune.wanda", "prune.descent", "orders", "recover.grouped", "recover.kept"),
    ("prune.groups",),
    ("prune.refit", "prune.alps"),
    ("prune.obs",),
    ("prune.gqsa",),
    ("prune.methods", "recover.trainable", "recover.training"),
    ("prune", "pack", "checkpoint.writer", "hub", "report"),
    ("layout", "source", "direct"),
    ("choice",),
    ("recipe", "checkpoint.config", "text"),
    ("linear_plan",),
    ("plan", "verify", "inspect", "runtime", "doctor", "sketch"),
    ("room", "allocate.rows", "allocate.speed", "allocate.knapsack", "allocate.fused"),
    ("allocate.allocation", "allocate.expected"),
    ("evaluate", "tasks", "calibrate.activations", "calibrate.tokens", "recover.end_to_end"),
    ("calibrate.decoder", "calibrate.folding"),
    ("calibrate.stream", "recover.block"),
    ("calibrate.engine",),
    ("calibrate.store",),
    ("calibrate.run",),
    ("calibrate.needs", "calibrate", "allocate"),
    ("finish",),
    ("pipeline", "publish"),
    ("cli",),
)
"""Lowest first. A module may import from its own row and from rows above it; a package name covers its modules."""


def layer_of(module: str) -> int:
    for number, row in enumerate(LAYERS):
        if module in row:
            return number
    parent = module.rpartition(".")[0]
    if not parent:
        pytest.fail(f"{module} is in no layer: give it its place in LAYERS")
    return layer_of(parent)


def modules() -> dict[str, Path]:
    out = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and parts[0] not in ("kernels", "__main__"):
            out[name] = path
    return out


def imports(name: str, path: Path) -> set[str]:
    """The modules of the package that a module imports, as dotted names without the package's own."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{target}.{alias.name}".strip(".") for alias in node.names} & known.keys() or {target}
    return {target for target in found if target and not target.startswith("kernels")}


def test_nothing_imports_upwards() -> None:
    upwards = [
        f"{name} imports {target}"
        for name, path in modules().items()
        for target in imports(name, path)
        if layer_of(target) > layer_of(name)
    ]
    assert not upwards


def test_kernels_know_nothing_of_the_package() -> None:
    known = {"torch", "triton"} | sys.stdlib_module_names
    for path in (ROOT / "kernels").rglob("*.py"):
        if path.name.startswith(("test_", "bench_")):
            continue  # not part of what travels
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= known, path


def test_bundled_code_knows_nothing_of_the_package() -> None:
    known = {"torch", "transformers", "safetensors"} | sys.stdlib_module_names
    for name in CODE_FILES:
        for node in ast.walk(ast.parse((PACKAGE / "runtime" / name).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert not node.level or f"{node.module}.py" in CODE_FILES, name
                names += [node.module or ""] if not node.level else []
            assert {imported.split(".")[0] for imported in names} <= known, name


def test_only_the_plugin_knows_vllm() -> None:
    """It is imported by vLLM alone: nothing else may, nor need it be installed for anything else."""
    for name, path in modules().items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        plugin = name.startswith("runtime.vllm_")
        assert plugin or "vllm" not in {imported.split(".")[0] for imported in names}, name
        assert plugin or not [target for target in imports(name, path) if target.startswith("runtime.vllm_")], name


def test_only_the_command_line_prints_or_exits() -> None:
    for name, path in modules().items():
        if name.split(".")[0] == "cli":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [f for f in calls if isinstance(f, ast.Name) and f.id in ("print", "exit")], name
        assert not [f for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f) == "sys.exit"], name


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_documented_and_work(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    assert len(recipe.read_text().splitlines()) <= 20
    assert recipe.name in (ROOT / "recipes" / "README.md").read_text()
    load_recipe(recipe)
    words = ("--calibration", TEXT.with_name("calibration.jsonl"), "--samples", "8", "--length", "64")
    assert cli("convert", DEMO, tmp_path / "out", "--recipe", recipe, *words).code == 0
    assert cli("verify", tmp_path / "out", "--source", DEMO).code == 0


def test_readme_names_every_command_and_option() -> None:
    import click

    from slideconvert.cli import group

    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"slideconvert {name}" in readme, f"README.md does not show slideconvert {name}"
    context = click.Context(group)
    known = {option for name in COMMANDS for p in group.get_command(context, name).params for option in p.opts}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme))
    foreign = {"--scheme", "--help", "--tensor-parallel-size", "--hf-overrides"} | {
        line for line in shown if f"pip install {line}" in readme
    }
    assert shown - known - foreign == set(), "README.md shows options that no command has"


def test_readme_commands_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slideconvert line of the README's quick start, pasted as it stands, on the bundled model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    block = (ROOT / "README.md").read_text().split("<!-- tested -->")[1].split("```")[1]
    commands = [line.split() for line in block.splitlines() if line.startswith("slideconvert ")]
    assert len(commands) >= 8
    for words in commands:
        outcome = cli(*[word.strip("'\"") for word in words[1:]])
        assert outcome.code == 0, (words, outcome.err)


def test_published_kernels_are_those_of_the_repository(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse_config"]
    assert record["kernels"]
    assert set(CODE_FILES) <= record["kernels"].keys()
    for name in record["kernels"]:
        origin = PACKAGE / "runtime" / name if name in CODE_FILES else ROOT / name
        assert (tmp_path / "out" / name).read_bytes() == origin.read_bytes()
    assert not [name for name in pico.files(tmp_path / "out") if "test_" in name or "__pycache__" in name]
