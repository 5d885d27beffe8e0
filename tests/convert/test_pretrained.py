"""The scripts that fetch a pretrained model and texts, and the bench on them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from tests.conftest import MAGNITUDE, Cli
from tests.helpers import demo, pico

ROOT = Path(__file__).parents[2]
SCRIPTS, BENCH = ROOT / "examples" / "pretrained", ROOT / "benches" / "calibration" / "accuracy.py"
PEER = "llm-compressor SparseGPT"
WORDS = ("--length", "128", "--device", "cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded(SCRIPTS / "make_texts.py", monkeypatch)


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module, which imports others of its folder."""
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["make_model", "make_texts"])
def test_without_an_index_a_script_says_so_and_writes_nothing(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: pip could not download what ") and "offline?" in lines[0]
    assert not (tmp_path / "out").exists()


PAGE = """\
Title
=====

.. module:: things

A paragraph of :doc:`Django </intro>`, with ``code``, *emphasis* and a `link <https://example.com>`_, that has
enough words to stay.

    print("an indented block, which is code and no prose at all, however many words it has")

* a list, which is left out, even where an entry of it has as many words as a paragraph has

Too short to stay.

Whatever comes before a block of code ends with two colons, and is left out for that reason::

    more code
"""
PROSE = "A paragraph of Django, with code, emphasis and a link, that has enough words to stay."


def test_prose_is_the_paragraphs_of_a_page(script: ModuleType) -> None:
    assert script.paragraphs(PAGE) == PROSE


def archives(folder: Path) -> list[Path]:
    """A sdist with pages and a wheel with modules, of enough documents for both parts."""
    sdist, wheel = folder / "django-5.2.tar.gz", folder / "networkx-3.6-py3-none-any.whl"
    page = "\n\n".join([f"Paragraph {number}: {PROSE}" for number in range(20)])
    with tarfile.open(sdist, "w:gz") as archive:
        pages = {f"django-5.2/docs/topics/page{number}.txt": page for number in range(12)}
        for name, text in (pages | {"django-5.2/docs/releases/1.0.txt": page, "django-5.2/notes.txt": page}).items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with zipfile.ZipFile(wheel, "w") as packed:
        for number in range(12):
            packed.writestr(f"networkx/module{number}.py", f"x = {number}\n" * 200)
        packed.writestr("networkx/tests/test_module.py", "x = 1\n" * 400)
        packed.writestr("networkx/short.py", "x = 1\n")
    return [sdist, wheel]


def test_texts_are_disjoint_documents_and_the_same_every_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "fetch", lambda requirements, folder: archives(folder))
    for out in (tmp_path / "one", tmp_path / "two"):
        assert CliRunner().invoke(script.main, [str(out)], catch_exceptions=False).exit_code == 0
    assert pico.files(tmp_path / "one") == pico.files(tmp_path / "two")
    for kind in ("prose", "code"):
        parts = [(tmp_path / "one" / kind / f"{part}.jsonl").read_text().splitlines() for part in script.PARTS]
        assert all(parts) and sum(map(len, parts)) == 12  # no releases, tests, and short modules
    texts = [json.loads(line)["text"] for part in parts for line in part]
    assert len(set(texts)) == 12


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return loaded(BENCH, monkeypatch)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "prose"
    folder.mkdir()
    for name in ("calibration.jsonl", "evaluation.jsonl"):
        (folder / name).write_bytes((demo.EXAMPLES / "demo_text" / name).read_bytes())
    return folder


def run(bench: ModuleType, texts: Path, *words: object) -> list[dict[str, object]]:
    """Run the bench on few sequences of the demo model; the rows of its file."""
    out = texts.parent / "rows.jsonl"
    small = ("--samples", "4", "--length", "64", "--sequences", "2", "--device", "cpu", "--column", "2_8/int8")
    command = [demo.DEMO, texts, "--out", out, *small, *words]
    result = CliRunner().invoke(bench.main, [str(word) for word in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_bench_writes_failures_as_rows_and_measures_only_what_is_missing(
    bench: ModuleType, texts: Path, cli: Cli, tmp_path: Path
) -> None:
    without = run(bench, texts, "--way", PEER)
    assert [row["cell"]["way"] for row in without] == ["dense", PEER]
    assert without[0]["result"]["perplexity"] > 1 and "no --peer-python" in without[1]["result"]["failed"]
    failed = run(bench, texts, "--way", PEER, "--peer-python", "false")[2:]
    assert [row["result"]["failed"] for row in failed] == ["exit code 1"]
    pruned = tmp_path / "pruned"
    assert cli("convert", demo.DEMO, pruned, *MAGNITUDE, "--pattern", "2_8", "--layout", "dense", "-q").code == 0
    peer = tmp_path / "peer"  # instead of llm-compressor's Python: "writes" a checkpoint to its last argument
    peer.write_text(f'#!/bin/sh\nfor last; do :; done\ncp -r {pruned} "$last"\n')
    peer.chmod(0o755)
    (done,) = run(bench, texts, "--way", PEER, "--peer-python", peer)[3:]
    assert done["result"]["perplexity"] > without[0]["result"]["perplexity"] and done["result"]["broken"] == 0
    assert len(run(bench, texts, "--way", PEER, "--peer-python", peer)) == 4


def test_the_bench_measures_ways_of_our_own(bench: ModuleType, texts: Path) -> None:
    dense, *pruned = run(bench, texts, "--way", "magnitude", "--way", "balanced")
    assert [row["cell"]["way"] for row in pruned] == ["magnitude", "balanced"]
    for result in (row["result"] for row in pruned):
        assert result["failed"] == "" and result["broken"] == 0 and result["seconds"] > 0
        assert result["perplexity"] > dense["result"]["perplexity"] and result["kl"] > 0 and 0 < result["same_top"] < 1


def test_the_bench_stops_in_time(bench: ModuleType, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts.parent / "rows.jsonl").touch()
    assert run(bench, texts, "--way", "magnitude", "--minutes", "0") == []

    def too_long(command: list[str], timeout: float, **words: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", too_long)
    assert [row["cell"]["way"] for row in run(bench, texts, "--way", "magnitude")] == ["dense"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, checked by its perplexity and a sentence."""
    out = tmp_path_factory.mktemp("pretrained") / "model"
    pytest.importorskip("gguf", reason="needs the extra gguf")
    with pytest.MonkeyPatch.context() as patch:
        script = loaded(SCRIPTS / "make_model.py", patch)
        try:
            script.make(out)
        except script.Unavailable as error:
            pytest.skip(f"the model cannot be had: {error}")
        script.check(out)
    return out


@pytest.mark.slow
def test_calibration_helps_a_pretrained_model(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Even where it comes from another kind of text than what is measured: Python modules for prose."""
    sample = SCRIPTS / "sample.txt"
    words = ("--pattern", "2_8", "--scheme", "int8", "-q")
    text = demo.EXAMPLES / "demo_text" / "calibration.jsonl"
    assert cli("convert", model, tmp_path / "magnitude", *words, *MAGNITUDE).code == 0
    calibrated = ("--preset", "balanced", "--calibration", text, "--samples", "16", "--length", "256")
    assert cli("convert", model, tmp_path / "balanced", *words, *calibrated).code == 0
    evaluated = cli("eval", model, tmp_path / "balanced", tmp_path / "magnitude", "--text", sample, *WORDS, "--json")
    dense, balanced, magnitude = (row["perplexity"] for row in json.loads(evaluated.out)["results"])
    assert dense < balanced < magnitude


@pytest.mark.slow
def test_a_pretrained_model_from_gguf_is_that_of_its_folder(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Read as a GGUF source, by transformers' own reader of GGUF, and from the folder: the same weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    with pytest.MonkeyPatch.context() as patch:
        script = loaded(SCRIPTS / "make_model.py", patch)
        path = script.unpacked(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.bfloat16).state_dict()
    ours = load_file(model / "model.safetensors")
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    assert not [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
