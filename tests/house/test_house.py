"""The rules of the house: who may import whom, who may print, that recipes work and documents do not rot."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import slideconvert
from slideconvert.cli import COMMANDS
from slideconvert.plan.presets import PRESETS, Recovery
from slideconvert.plan.recipe import load_recipe
from slideconvert.runtime.slidesparse_record import CODE_FILES
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.demo import TEXT

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "slideconvert"

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md", "examples/demo.py")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MARK = "<!-- tested -->"
TESTED = [path for path in DOCUMENTS if MARK in path.read_text()]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
BENCHES = [
    *(ROOT / "benches").rglob("*.py"),
    *(ROOT / "kernels").rglob("bench_*.py"),
    ROOT / "examples/train_demo_model.py",
]
FOREIGN_OPTIONS = (
    *("--tensor-parallel-size", "--hf-overrides", "--max-logprobs", "--max-model-len", "--compilation-config"),
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--multi-gpu"),
    *("--rm", "--user", "--gpus", "--build-arg"),
    *("--num-processes", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--kill-on-bad-exit"),
)
"""Options of vLLM, torchrun, accelerate, Slurm and Docker that documents show."""

ROWS = (
    ("errors", "launched", "progress", "kernels"),
    ("ranks",),
    ("core", "checkpoint"),
    ("runtime",),
    ("formats",),
    ("models", "prune", "texts"),
    ("permute", "recover", "report", "evaluate", "gguf_files", "smooth"),
    ("verify", "plan"),
    ("hub", "calibrate"),
    ("allocate", "convert"),
    ("bench", "compare", "rotate"),
    ("api",),
    ("cli",),
)
"""The packages of slideconvert, lowest first. A module imports from its own package and from rows above it, and from
nothing else: packages of one row do not know of each other."""


def row_of(package: str) -> int:
    for number, row in enumerate(ROWS):
        if package in row:
            return number
    pytest.fail(f"{package} is in no row: give it its place in ROWS")


@cache
def modules() -> dict[str, Path]:
    """The modules of slideconvert by dotted name, without those of the kernels and the two that start everything."""
    out = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and parts[0] not in ("kernels", "__main__"):
            out[name] = path
    return out


def imports(name: str, path: Path) -> set[str]:
    """The modules and packages of slideconvert that a module imports when it runs, as dotted names without the first
    part; those that it only needs for its types are left out."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    known = modules().keys() | {package for row in ROWS for package in row}
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    for_types = {id(node) for block in guarded for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("slideconvert.") for alias in node.names if "slideconvert." in alias.name}
        if not isinstance(node, ast.ImportFrom) or id(node) in for_types:
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif (node.module or "").split(".")[0] == "slideconvert":
            base = []
        else:
            continue
        target = ".".join([*base, *(node.module or "").removeprefix("slideconvert").split(".")]).strip(".")
        found |= {f"{target}.{alias.name}".strip(".") for alias in node.names} & known or {target}
    return {target for target in found if target}


def forbidden(name: str, path: Path) -> list[str]:
    """The imports of a module that the rows do not allow."""
    own = name.split(".")[0]
    targets = {target.split(".")[0]: target for target in imports(name, path)}
    return [
        f"{name} imports {target}"
        for package, target in targets.items()
        if package != own and row_of(package) >= row_of(own)
    ]


def test_nothing_imports_upwards() -> None:
    assert [fault for name, path in modules().items() for fault in forbidden(name, path)] == []


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    """Of the kernels too, in every spelling."""
    for line in (
        "from .kernels.linear import x",
        "from . import kernels",
        "import slideconvert.cli.common",
        "from slideconvert.plan import x",
    ):
        (tmp_path / "errors.py").write_text(line)
        assert forbidden("errors", tmp_path / "errors.py"), line


def test_few_modules_stand_outside_the_packages() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


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


@pytest.fixture
def one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets that train do so for one epoch of each kind."""
    for name, preset in PRESETS.items():
        parts = {part: once(getattr(preset, part)) for part in ("recovery", "group_recovery")}
        monkeypatch.setitem(PRESETS, name, replace(preset, **parts))


def once(recovery: Recovery) -> Recovery:
    return replace(recovery, block_epochs=min(recovery.block_epochs, 1), end_epochs=min(recovery.end_epochs, 1))


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_documented_and_work(
    cli: Cli, tmp_path: Path, short_demo: Path, one_epoch: None, recipe: Path
) -> None:
    assert len(recipe.read_text().splitlines()) <= 20
    assert recipe.name in (ROOT / "recipes" / "README.md").read_text()
    words: tuple[object, ...] = ()
    if load_recipe(recipe).calibrates:
        words = ("--calibration", TEXT.with_name("calibration.jsonl"), "--samples", "8", "--length", "64")
    assert cli("convert", short_demo, tmp_path / "out", "--recipe", recipe, *words).code == 0
    assert cli("verify", tmp_path / "out", "--source", short_demo).code == 0


def test_readme_shows_every_command_in_250_lines() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 250
    for name in COMMANDS:
        assert f"slideconvert {name}" in readme, f"README.md does not show slideconvert {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_options_that_exist(document: Path) -> None:
    """Each option stands in a command line of another tool, or some command of ours has it."""
    from slideconvert.cli import find_command

    params = [p for name in COMMANDS for p in find_command(name).params]
    known = {option for p in params for option in (*p.opts, *p.secondary_opts)} | {"--help", *FOREIGN_OPTIONS}
    own = "\n".join(line for line in document.read_text().splitlines() if not re.match(r"(pip|pytest|python) ", line))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own)) - known == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to {link}"
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, f"{document.name} links to {link}"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_demo: Path, one_epoch: None) -> Path:
    """A working folder with what examples use. The demo model has two layers, and training takes one epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "demo_model").symlink_to(short_demo)
    (tmp_path / "examples" / "demo_text").symlink_to(ROOT / "examples" / "demo_text")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


@pytest.mark.parametrize("document", TESTED, ids=lambda path: path.name)
def test_readme_commands_run(document: Path, cli: Cli, checkout: Path) -> None:
    """Every slideconvert line and every block of Python that README.md and docs/ mark as tested, as it stands."""
    blocks = [part.split("```")[1] for part in document.read_text().split(MARK)[1:]]
    programs = [block.removeprefix("python\n") for block in blocks if block.startswith("python\n")]
    for program in programs:
        exec(compile(program, document, "exec"), {})
    commands = [line.split() for line in "\n".join(blocks).splitlines() if line.startswith("slideconvert ")]
    assert commands or programs
    for words in commands:
        outcome = cli(*[word.strip("'\"") for word in words[1:]])
        assert outcome.code == 0, (words, outcome.err)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_and_are_kept_without_results(
    notebook: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All cells of code in their order, where Jupyter runs them: in the folder of the notebook."""
    monkeypatch.chdir(checkout / "examples")
    monkeypatch.setattr("tempfile.tempdir", str(checkout))
    fields = json.loads(notebook.read_text())
    assert fields["nbformat"] == 4 and fields["nbformat_minor"] >= 5  # cells have ids
    assert len({cell["id"] for cell in fields["cells"]}) == len(fields["cells"])
    cells = [cell for cell in fields["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]
    names: dict[str, object] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{notebook.name}, {cell['id']}", "exec"), names)
    assert capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["demo_model", "demo_text"]  # it leaves nothing behind


def test_the_page_of_the_python_api_names_all_of_it() -> None:
    page = (ROOT / "docs" / "python-api.md").read_text()
    functions = [name for name in slideconvert.__all__ if name.islower()]
    assert [name for name in functions if not re.search(rf"`{name}[(`]", page)] == []


@pytest.mark.parametrize("bench", BENCHES, ids=lambda path: str(path.relative_to(ROOT)))
def test_benches_import_what_exists(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(bench.parent)
    name = ".".join(bench.relative_to(ROOT).with_suffix("").parts)
    runpy.run_path(str(bench), run_name=name if name.startswith("benches.") else f"slideconvert.{name}")


def test_published_kernels_are_those_of_the_repository(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["slidesparse_config"]
    assert record["kernels"]
    assert set(CODE_FILES) <= record["kernels"].keys()
    for name in record["kernels"]:
        origin = PACKAGE / "runtime" / name if name in CODE_FILES else ROOT / name
        assert (tmp_path / "out" / name).read_bytes() == origin.read_bytes()
    assert not [name for name in pico.files(tmp_path / "out") if "test_" in name or "__pycache__" in name]
