"""The archives that are published: what is in them, and that the wheel alone does the whole job from any folder."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Cli
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


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    here = {
        Path(target, path.relative_to(ROOT / origin)).as_posix()
        for origin, target in (
            ("slideconvert", "slideconvert"),
            ("kernels", "slideconvert/kernels"),
            ("recipes", "slideconvert/recipes"),
        )
        for path in (ROOT / origin).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(("test_", "bench_"))
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(here)
    assert {Path(name).suffix for name in names} >= {".py", ".cu", ".c", ".csv", ".yaml", ".typed"}


def test_the_sdist_holds_every_file_once_and_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    tops = {name.parts[0] for name in names}
    assert {"slideconvert", "recipes", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"tests", "benches", "kernels", "examples"}
    assert not [name for name in names if name.name.startswith(("test_", "bench_"))]
    assert len(names) == len(set(names))


def test_the_wheel_does_the_whole_job_from_another_folder(cli: Cli, installed: Path, tmp_path: Path) -> None:
    """And writes the very files that this checkout writes, code for transformers included."""
    assert "convert" in run(installed / "slideconvert", "--help", cwd=tmp_path)
    assert "answer: def " in run(installed / "python", "-c", JOB, DEMO, *WORDS, cwd=tmp_path)
    assert cli("convert", DEMO, tmp_path / "here", *WORDS, "-q").code == 0
    assert pico.files(tmp_path / "out") == pico.files(tmp_path / "here")
