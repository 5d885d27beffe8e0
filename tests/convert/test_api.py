"""The Python functions: the examples of their docstrings run, they do what the commands do, and print nothing."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import slideconvert
from slideconvert import ConvertOptions, Documents, EvaluateOptions, PlanOptions, SparsifyOptions, VerifyOptions
from slideconvert.api import checkpoints, compare, convert, memory, options, probe, writing
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.cli import COMMANDS
from slideconvert.errors import InputError
from slideconvert.models.load import load_tokenizer
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import write_tokenizer
from tests.helpers.chat import write_chat_model
from tests.helpers.demo import DEMO, TEXT

EXAMPLES = [
    example
    for module in (convert, checkpoints, compare, memory, probe, writing)
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
    if example.name.endswith(".as_source"):
        example.globs |= {"loaded": AutoModelForCausalLM.from_pretrained(DEMO), "tokenizer": None}
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


def test_a_model_in_memory_is_a_source_like_its_folder(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same weights, and a tokenizer for what reads text; nothing is left when the block ends, by an error too."""
    write_tokenizer(source)
    loaded = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = load_tokenizer(Checkpoint.open(source))
    capfd.readouterr()
    words = ConvertOptions(method="obs", samples=9, length=24, calibration=Documents([" ".join(["w5 w9 w7"] * 99)]))
    with slideconvert.as_source(loaded, tokenizer, name="mine") as folder:
        report = slideconvert.convert(folder, tmp_path / "memory", words)
    assert capfd.readouterr() == ("", "")
    assert report.source == "mine" and not folder.parent.exists()
    slideconvert.convert(source, tmp_path / "folder", words)
    memory, read = (pico.read(tmp_path / name) for name in ("memory", "folder"))
    assert memory.keys() == read.keys() and all(torch.equal(memory[name], read[name]) for name in read)
    with pytest.raises(ZeroDivisionError), slideconvert.as_source(loaded) as folder:
        raise ZeroDivisionError
    assert folder.name == source.name and not folder.exists()


@pytest.mark.parametrize("name", ["", "a/b", ".."])
def test_what_cannot_be_a_source_is_refused(source: Path, name: str) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(source)
    if name:
        with pytest.raises(InputError, match="is no name of a folder"), slideconvert.as_source(loaded, name=name):
            pass
    part, words = loaded.get_input_embeddings(), r"Embedding is no PreTrainedModel .*merge adapters"
    with pytest.raises(InputError, match=words), slideconvert.as_source(part):
        pass


def test_texts_of_commands_and_functions_are_the_same(cli: Cli, tmp_path: Path) -> None:
    """Conversations and text by weight, from files and from memory: the same weights and the same perplexities."""
    folder = write_chat_model(tmp_path / "chat")
    answer = {"role": "assistant", "content": "w6"}
    chats = [{"messages": [{"role": "user", "content": f"w{number} w5"}, answer]} for number in range(80)]
    notes = [{"body": " ".join(f"w{(first * factor) % 80}" for factor in range(40))} for first in range(1, 40)]
    plain = [{"text": row["body"]} for row in notes]
    for name, rows in {"chats": chats, "notes": notes, "plain": plain}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ("--calibration", tmp_path / "chats.jsonl", "--calibration", tmp_path / "plain.jsonl", "--weights", "1,2")
    measured = ("--text", tmp_path / "notes.jsonl", "--text-column", "body", "--sequences", 2)
    words = ("--method", "obs", "--samples", 12, "--length", 24, "-q")
    done = cli("convert", folder, tmp_path / "a", *words, *texts, *measured)
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "a" / "config.json").read_text())["slidesparse_config"]["recipe"]["calibration"]
    assert recipe["weights"] == [1.0, 2.0] and recipe["text"] == ["chats.jsonl", "plain.jsonl"]
    in_memory = [Documents(chats, name="chats"), Documents([row["body"] for row in notes], name="notes")]
    common = {"method": "obs", "samples": 12, "length": 24, "text_column": "body", "sequences": 2}
    options = ConvertOptions(calibration=in_memory, weights="1,2", text=Documents(notes), **common)  # type: ignore[arg-type]
    report = slideconvert.convert(folder, tmp_path / "b", options)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert report.recipe["calibration"]["text"] == ["chats", "notes"]
    assert report.perplexity == json.loads((tmp_path / "a" / "report.json").read_text())["perplexity"]
    found = slideconvert.evaluate(str(folder), EvaluateOptions(text=tmp_path / "chats.jsonl", length=24)).perplexity
    assert found is not None and found[0]["sequences"] == 80 * 9 // 24  # <s> w1 w… w5 </s> <s> w2 w6 </s>


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
