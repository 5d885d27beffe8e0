"""The archives that are published: what is in them, and that the wheel alone does the whole job from any folder."""

from __future__ import annotations

import email
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from slideconvert import __version__
from slideconvert.report import Report
from slideconvert.report.card import render_card
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("--recipe", "int8-2of8-magnitude")

JOB = """
import sys
sys.modules["sklearn"] = None  # transformers would import it, for seconds
import slideconvert
from slideconvert.cli import main
from transformers import AutoModelForCausalLM, AutoTokenizer

assert slideconvert.__file__.startswith(sys.prefix), slideconvert.__file__
demo, *recipe = sys.argv[1:]
for words in (["plan", demo, *recipe], ["convert", demo, "out", *recipe, "-q"], ["verify", "out", "--source", demo]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, words
model, tokenizer = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
assert "SlideSparseLinear" in {type(module).__name__ for module in model.modules()}
print("answer:", tokenizer.decode(model.generate(**tokenizer("def ", return_tensors="pt"), max_new_tokens=4)[0]))
"""
"""Commands and transformers in one Python, which takes seconds to start."""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(source: Path, target: str, folder: Path) -> Path:
    """Build one archive from the project in `source`, with the build system of this environment."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], cwd=source, check=True)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture
def report(cli: Cli, source: Path, tmp_path: Path) -> Report:
    """Of a checkpoint that loaders read with slideconvert."""
    assert cli("convert", source, tmp_path / "out", *MAGNITUDE, "-q").code == 0
    return Report.from_json((tmp_path / "out" / "report.json").read_text())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, which proves that nothing is missing there."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters: Debian 12's, for one.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder)
    (source,) = folder.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with the packages of this one (but not its slideconvert)."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=folder)
    return folder / "bin"


def is_development(path: Path) -> bool:
    """Whether a file is a test or a bench beside the kernels. Modules of slideconvert may have such names."""
    return "kernels" in path.parts and path.name.startswith(("test_", "bench_"))


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    here = {
        Path(target, path.relative_to(ROOT / origin)).as_posix()
        for origin, target in (
            ("slideconvert", "slideconvert"),
            ("kernels", "slideconvert/kernels"),
            ("recipes", "slideconvert/recipes"),
        )
        for path in (ROOT / origin).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not is_development(path)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(here)
    assert {Path(name).suffix for name in names} >= {".py", ".cu", ".c", ".csv", ".yaml", ".typed"}


def test_the_metadata_is_whole(wheel: Path) -> None:
    """And names no address: the project has none, and one that is made up belongs to whoever registers it."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {Path(name).parent for name in archive.namelist() if name.endswith(".dist-info/METADATA")}
        metadata = email.message_from_string(archive.read(f"{info}/METADATA").decode())
        assert "Tag: py3-none-any" in archive.read(f"{info}/WHEEL").decode()  # aarch64 too
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        points = archive.read(f"{info}/entry_points.txt").decode()
    assert "slideconvert = slideconvert.cli:main" in points and "[vllm.general_plugins]" in points
    assert (metadata["Name"], metadata["Version"]) == ("slideconvert", __version__)
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"
    assert metadata["Author"] == "slideconvert maintainers" and "Typing :: Typed" in metadata.get_all("Classifier")
    assert not {"Project-URL", "Home-page", "Download-URL", "Author-email"} & set(metadata.keys())
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert text == (ROOT / "README.md").read_text()
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert page.count("<table>") == text.count("\n|---|") > 0 and page.count("<h1>") == 1
    assert not re.search(r"```|\|--|\*\*|^#", re.sub(r"<code.*?</code>", "", page, flags=re.DOTALL), re.MULTILINE)


def test_the_card_installs_the_wheel(wheel: Path, installed: Path, report: Report, tmp_path: Path) -> None:
    """The line for vLLM, as a shell reads it, with an address where the wheel is."""
    card = render_card(report, package=wheel.as_uri())
    (line,) = {line for line in card.splitlines() if line.startswith("pip install ")}
    pip = shlex.join(
        [sys.executable, "-m", "pip", "--python", str(installed / "python"), "--disable-pip-version-check"]
    )
    told = run("sh", "-c", f"{line.replace('pip', pip, 1)} --no-index --no-deps --force-reinstall", cwd=tmp_path)
    assert f"Successfully installed slideconvert-{__version__}" in told


def test_the_sdist_holds_every_file_once_and_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    tops = {name.parts[0] for name in names}
    assert {"slideconvert", "recipes", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"tests", "benches", "kernels", "examples"}
    assert not [name for name in names if "kernels" in name.parts and is_development(name)]
    assert Path("slideconvert/api/bench_serve.py") in names
    assert len(names) == len(set(names))


def test_the_wheel_does_the_whole_job_from_another_folder(cli: Cli, installed: Path, tmp_path: Path) -> None:
    """And writes the very files that this checkout writes, code for transformers included."""
    recipes = run(installed / "slideconvert", "recipes", cwd=tmp_path)
    assert all(path.stem in recipes for path in (ROOT / "recipes").glob("*.yaml"))
    assert "answer: def " in run(installed / "python", "-c", JOB, DEMO, *WORDS, cwd=tmp_path)
    assert cli("convert", DEMO, tmp_path / "here", *WORDS, "-q").code == 0
    assert pico.files(tmp_path / "out") == pico.files(tmp_path / "here")
