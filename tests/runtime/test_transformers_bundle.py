"""A checkpoint runs without slideconvert, by the code it carries, from a folder and from the Hub; and by no other.

Each case is a Python of its own, in which importing slideconvert or compressed_tensors fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import InputError
from slideconvert.models.load import load_model
from slideconvert.runtime.bundle import check_bundle
from slideconvert.runtime.slidesparse_record import AUTO_MAP, CODE_FILES, SOURCES
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.hub_server import HubServer
from tests.helpers.serving import LAYOUTS, QWEN2, TOKENS, checkpoint, edit_config, logits

WITHOUT_US = """
import sys
sys.modules["sklearn"] = None  # transformers would import it, for seconds

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("slideconvert", "compressed_tensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import json, torch, transformers
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
tokens = torch.load("tokens.pt")
transformers.logging.set_verbosity_error()

def load(where, **words):
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, trust_remote_code=True, **words)

def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits

def refusal(where, **words):
    try:
        load(where, **words)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

"""
FIRST, EVIL = "kernels/backends/choose.py", b"raise SystemExit('this code was run')"
"""The kernel file that is imported before any other, and what it must not become."""
NOT_BUNDLED = ("test_", "bench_")
LAST = "\nassert not {'slideconvert', 'compressed_tensors'} & sys.modules.keys()\n"


def without_us(folder: Path, script: str, **environment: str) -> dict[str, Any]:
    """Run a script that fills a dict `results`, in `folder` with the cache of code there, and return them."""
    torch.save(TOKENS, folder / "tokens.pt")
    code = f"{WITHOUT_US}results = {{}}\n{script}{LAST}torch.save(results, 'results.pt')\n"
    clean = {name: word for name, word in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    settings = {"HF_HOME": str(folder / "home"), "NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env=clean | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = torch.load(folder / "results.pt")
    return results


LOCAL = """
for layout in ("slide", "dense"):
    model = load(f"{layout}/out")
    kinds = {type(m) for m in model.modules() if type(m).__name__ == "SlideSparseLinear"}
    results[layout] = logits(model), sorted(kind.__module__ for kind in kinds), type(model).__module__
    model.save_pretrained(f"{layout}/again")
    results[f"{layout} generates"] = model.generate(tokens, max_new_tokens=4, do_sample=False, eos_token_id=None)
results["bare"] = AutoModelForCausalLM.from_config(model.config).model.layers[0].mlp.up_proj.__class__.__name__
results["plain"] = type(load("slide/source").model.layers[0].mlp.up_proj).__name__
results["untrusted"] = type(AutoModelForCausalLM.from_pretrained("slide/source")).__module__
"""


REFUSALS = """
from pathlib import Path
import json, shutil

def spoiled(name, change):
    shutil.copytree("slide/out", name)
    change(Path(name))
    results[name] = refusal(name)

def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))

def no_hashes(config):
    config["slidesparse_config"]["kernels"] = {}

def outside(config):
    config["slidesparse_config"]["kernels"]["kernels/../../../evil.py"] = "0" * 64

evil = "raise SystemExit('this code was run')"
spoiled("changed", lambda folder: (folder / "kernels/backends/choose.py").write_text(evil))
spoiled("missing", lambda folder: (folder / "kernels/windows.py").unlink())
spoiled("more", lambda folder: (folder / "kernels/evil.py").write_text(evil))
spoiled("hashless", lambda folder: rewrite(folder, no_hashes))
spoiled("outside", lambda folder: rewrite(folder, outside))
from transformers import BitsAndBytesConfig
results["twice"] = refusal("slide/out", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
load("slide/out")
"""


HUB = """
results["hub"] = logits(load("org/slide"))
results["branch"] = logits(load("org/slide", revision="other"))
results["hub changed"] = refusal("org/spoiled")
results["hub outside"] = refusal("org/outside")
"""


class Alone(NamedTuple):
    """One such Python, which runs all of the scripts above because it takes seconds to start."""

    folder: Path
    made: dict[str, Path]
    before: dict[str, dict[str, bytes]]
    """The files of what was made, before it was loaded."""
    results: dict[str, Any]
    commit: str
    asked: list[str]
    """Where the Hub was asked for one of the kernel files."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    made = {layout: checkpoint(folder / layout, "mixed", layout, biases=True) for layout in LAYOUTS}
    before = {layout: pico.files(made[layout]) for layout in LAYOUTS}
    files = before["slide"]
    older = {name: data.replace(b'"eos_token_id": 1', b'"eos_token_id": 2') for name, data in files.items()}
    outside = files["config.json"].replace(b'"kernels/linear.py"', b'"kernels/../../linear.py"')
    with HubServer() as hub:
        hub.add_repo("org/slide", files)
        commit = hub.add_repo("org/slide", older, branch="other")
        hub.add_repo("org/spoiled", {**files, FIRST: EVIL})
        hub.add_repo("org/outside", {**files, "config.json": outside})
        results = without_us(folder, LOCAL + REFUSALS + HUB, HF_ENDPOINT=hub.url)
        asked = [request.path for request in hub.requests if request.path.endswith("kernels/linear.py")]
    return Alone(folder, made, before, results, commit, asked)


def test_both_layouts_from_a_folder(alone: Alone) -> None:
    results = alone.results
    for layout, folder in alone.made.items():
        ours = load_model(Checkpoint.open(folder))
        found, modules, kind = results[layout]
        assert torch.equal(found, logits(ours))
        assert len(modules) == 1 and modules[0].startswith("transformers_modules.out.") and ".kernels_" in modules[0]
        assert kind == "transformers.models.qwen2.modeling_qwen2"
        assert torch.equal(results[f"{layout} generates"][:, : TOKENS.shape[1] + 1][:, -1], found[:, -1].argmax(-1))
        assert pico.files(folder) == alone.before[layout]  # nothing was written there, no __pycache__ either
        assert pico.read(alone.folder / layout / "again").keys() == pico.read(folder).keys()
    # Trusting one checkpoint changes nothing for the others of its architecture.
    assert results["bare"] == results["plain"] == "Linear"
    assert results["untrusted"].startswith("transformers.")


def test_changed_code_is_not_run(alone: Alone) -> None:
    results = alone.results
    assert "changed: kernels/backends/choose.py: sha256 differs" in results["changed"]
    assert "missing: kernels/windows.py: file is missing" in results["missing"]
    assert "more: kernels/evil.py: code that the record does not list" in results["more"]
    assert "no sha256 of the kernels (install slideconvert" in results["hashless"]
    assert "evil.py: no place" in results["outside"]
    assert "takes no quantization_config" in results["twice"]
    assert all("\n" not in said for said in results.values() if isinstance(said, str))


def test_from_the_hub(alone: Alone) -> None:
    """The code comes from the same commit as config.json; a changed file there is refused."""
    results, expected = alone.results, logits(load_model(Checkpoint.open(alone.made["slide"])))
    assert torch.equal(results["hub"], expected) and torch.equal(results["branch"], expected)
    assert "org/spoiled: kernels/backends/choose.py: sha256 differs" in results["hub changed"]
    assert "org/outside: kernels/../../linear.py: no place" in results["hub outside"]
    assert f"/org/slide/resolve/{alone.commit}/kernels/linear.py" in alone.asked
    assert not [path for path in alone.asked if "/main/" in path or "/other/" in path]


def test_changed_code_in_the_cache_is_replaced(alone: Alone, tmp_path: Path) -> None:
    """The cache of the Python before, all of it spoiled, in another one."""
    shutil.copytree(alone.folder / "home", tmp_path / "home")
    out = shutil.copytree(alone.made["slide"], tmp_path / "out")
    cached = list((tmp_path / "home").rglob("kernels_*/backends/choose.py"))
    for path in cached:
        path.write_bytes(EVIL)
    results = without_us(tmp_path, "results['logits'] = logits(load('out'))")
    assert torch.equal(results["logits"], logits(load_model(Checkpoint.open(out))))
    assert [path.read_bytes() for path in cached if path.read_bytes() != EVIL] == [(out / FIRST).read_bytes()]


INSTALLED = """
import slideconvert, sys, torch
sys.modules["sklearn"] = None  # transformers would import it, for seconds
from transformers import AutoModelForCausalLM
tokens = torch.load("tokens.pt")
def run(name, **words):
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **words)
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits, type(model.model.layers[0].mlp.up_proj).__module__
results = {"theirs": run("out", trust_remote_code=True), "ours": run("org/slide"), "again": run("out")}
try:
    run("org/spoiled")
    run("org/spoiled", trust_remote_code=True)
except ValueError as error:
    results["refused"] = str(error)
try:
    run("org/spoiled")
except ValueError as error:
    results["seen"] = str(error)
torch.save(results, "results.pt")
"""


def test_installed_package_runs_its_own_kernels_without_trust_remote_code(tmp_path: Path) -> None:
    """From the Hub it fetches no code, and checks what lies in the cache already."""
    out = checkpoint(tmp_path)
    files = pico.files(out)
    torch.save(TOKENS, tmp_path / "tokens.pt")
    with HubServer() as hub:
        hub.add_repo("org/slide", files)
        hub.add_repo("org/spoiled", {**files, FIRST: EVIL})
        clean = {name: word for name, word in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        settings = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "*",
            "HF_ENDPOINT": hub.url,
        }
        done = subprocess.run(
            [sys.executable, "-c", INSTALLED], cwd=tmp_path, env=clean | settings, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert not [r.path for r in hub.requests if "org/slide" in r.path and "kernels/" in r.path]
    results = torch.load(tmp_path / "results.pt")
    expected = logits(load_model(Checkpoint.open(out)))
    assert all(torch.equal(results[name][0], expected) for name in ("theirs", "ours", "again"))
    assert results["ours"][1] == results["again"][1] == "slideconvert.kernels.linear"
    assert results["theirs"][1].startswith("transformers_modules.")
    assert f"{FIRST}: sha256 differs" in results["refused"]
    assert f"{FIRST}: sha256 differs" in results["seen"]


# ---- what is written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_config_names_the_code_and_its_hashes(tmp_path: Path, layout: str) -> None:
    out = checkpoint(tmp_path, layout=layout)
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert set(CODE_FILES) <= config["slidesparse_config"]["kernels"].keys()
    kernels = Path(__file__).parents[2] / "kernels"
    travels = {path for path in kernels.rglob("*") if path.suffix in SOURCES and not path.name.startswith(NOT_BUNDLED)}
    listed = config["slidesparse_config"]["kernels"].keys()
    assert listed >= {f"kernels/{path.relative_to(kernels).as_posix()}" for path in travels}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.py")} <= listed


def test_code_of_the_source_is_not_copied(tmp_path: Path, cli: Cli) -> None:
    """Its files are not copied, so its auto_map would lead nowhere."""
    theirs = {"auto_map": {"AutoModelForCausalLM": "modeling_theirs.Model", "AutoConfig": "modeling_theirs.Config"}}
    source = pico.write(tmp_path / "source", pico.weights(bias=True), {**QWEN2, **theirs})
    assert cli("convert", *MAGNITUDE, source, tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert cli("sparsify", *MAGNITUDE, source, tmp_path / "sparse").code == 0
    assert "auto_map" not in json.loads((tmp_path / "sparse" / "config.json").read_text())


def test_verify_checks_the_code(tmp_path: Path, cli: Cli) -> None:
    out = checkpoint(tmp_path)
    (out / "kernels" / "more.py").write_text("")
    (out / CODE_FILES[0]).write_text("")
    (out / CODE_FILES[1]).unlink()
    said = cli("verify", out).err
    assert "kernels/more.py: code that the record does not list" in said
    assert f"{CODE_FILES[0]}: sha256 differs" in said and f"{CODE_FILES[1]}: file is missing" in said


def test_check_bundle(tmp_path: Path) -> None:
    out = checkpoint(tmp_path)
    hashes = json.loads((out / "config.json").read_text())["slidesparse_config"]["kernels"]
    check_bundle(out, hashes)
    check_bundle(out, {})  # saved again by transformers: nothing to compare with
    edit_config(out, lambda config: config)  # config.json is not code
    check_bundle(out, hashes)
    (out / "kernels" / "linear.py").write_text("")
    with pytest.raises(InputError, match=r"kernels/linear.py: sha256 differs .*get the checkpoint again"):
        check_bundle(out, hashes)
