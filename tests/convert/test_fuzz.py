"""Damaged files of all kinds before every command: a result, or one line that names what is wrong.

A case is a seed, so that a failing one can be run again: pytest tests/convert/test_fuzz.py -k SEED.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet
import pytest

from slideconvert.cli import DEFECT
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import FLAGS, write_tokenizer
from tests.helpers.mutations import damage

RECIPE = "scheme: int8\npattern: 2:8\nmethod: magnitude\nrules:\n  - {match: '*.down_proj', pattern: '2:6'}\n"
COMMANDS = {
    "plan": "plan MODEL --method magnitude",
    "convert": "convert MODEL OUT --method magnitude",
    "recipe": "plan MODEL --recipe RECIPE",
    "calibrated": f"convert MODEL OUT --preset fast --calibration TEXT {' '.join(map(str, FLAGS))}",
    "sparsify": "sparsify MODEL OUT --method magnitude",
    "relayout": "relayout MODEL OUT --layout dense",
    "verify": "verify MODEL",
    "verify against": "verify MODEL --source SOURCE",
    "inspect": "inspect MODEL",
    "doctor": "doctor MODEL",
    "eval": "eval MODEL --text TEXT --length 24 --sequences 3",
    "generate": "generate MODEL --prompt w1 --max-new-tokens 3",
}
QUICK, MANY = 60, 1500


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A folder with sound models (a source in shards, others' W8A8, ours in three layouts), texts and a recipe."""
    root = tmp_path_factory.mktemp("whole")
    source = write_tokenizer(pico.write(root / "source", shards=2))
    write_tokenizer(pico.w8a8(root / "w8a8"))
    made = {
        "slide": ("--method", "magnitude"),
        "permuted": ("--preset", "quality", "--block-epochs", "0", "--end-epochs", "0"),
        "gqs": ("--method", "saliency", "--sparsity", "0.5", "--group-size", "8", "--preset", "fast"),
    }
    from slideconvert.cli import main

    for name, words in made.items():
        calibration = () if name == "slide" else ("--calibration", str(text), *map(str, FLAGS))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(
                "sys.argv", ["slideconvert", "convert", "-q", str(source), str(root / name), *words, *calibration]
            )
            main()
        assert stop.value.code == 0
    shutil.copyfile(text, root / "text.jsonl")
    (root / "text.txt").write_text("w1 w2 w3 " * 200)
    rows = [f"w{number} " * 60 for number in range(30)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), root / "text.parquet")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def run_case(seed: int, whole: Path, folder: Path, cli: Cli) -> None:
    random = Random(seed)
    model = random.choice(("source", "source", "w8a8", "slide", "permuted", "gqs"))
    shutil.copytree(whole / model, folder / "model", copy_function=os.link)
    texts = {name: folder / f"text.{name}" for name in ("jsonl", "txt", "parquet")}
    for path in texts.values():
        shutil.copyfile(whole / path.name, path)
    shutil.copyfile(whole / "recipe.yaml", folder / "recipe.yaml")
    text = random.choice(list(texts.values()))
    name = random.choice(list(COMMANDS))
    words = {"MODEL": folder / "model", "OUT": folder / "out", "TEXT": text, "RECIPE": folder / "recipe.yaml"}
    words["SOURCE"] = whole / "source"
    command = COMMANDS[name].split()
    files = [path for path in sorted((folder / "model").iterdir()) if path.suffix in (".json", ".safetensors")]
    used = [words[word] for word in ("TEXT", "RECIPE") if word in command]
    victim = random.choice(used) if used and random.random() < 0.5 else random.choice(files)
    damage(victim, random)
    done = cli(*(words.get(word, word) for word in command))
    assert done.code in (0, 1, 2) and done.code != DEFECT, f"seed {seed}: {name}, {victim.name}: {done.err[-2000:]}"
    if done.code == 2:
        assert done.err.strip().splitlines()[-1].startswith(("error: ", "Error: ")), done.err
    assert "\x1b" not in done.out + done.err, f"seed {seed}: a terminal escape in {name}, {victim.name}"


@pytest.mark.parametrize("seed", range(QUICK))
def test_damaged_files_are_named(seed: int, whole: Path, tmp_path: Path, cli: Cli) -> None:
    run_case(seed, whole, tmp_path, cli)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, QUICK + MANY))
def test_many_damaged_files_are_named(seed: int, whole: Path, tmp_path: Path, cli: Cli) -> None:
    run_case(seed, whole, tmp_path, cli)
