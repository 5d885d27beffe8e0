"""verify finds every change of config.json that a loader acts on, of the record, and of any other file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.errors import SlideConvertError
from slideconvert.verify import verify_checkpoint
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.serving import drop_hashes, edit_config

pytest_plugins = ["tests.helpers.verify_fixtures"]

LINEAR = "model.layers.1.mlp.up_proj"


def edit(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json without its hash."""
    path = out / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=1))


def refused(cli: Cli, out: Path, *words: object) -> str:
    outcome = cli("verify", out, "-q", *words)
    assert outcome.code in (1, 2) and "Traceback" not in outcome.err, outcome
    return outcome.err


CHANGES: dict[str, Any] = {
    "rms_norm_eps": 1e-3,
    "num_attention_heads": 8,
    "hidden_act": "relu",
    "rope_theta": 20_000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
    "eos_token_id": 5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 16,
    "auto_map": {"AutoModelForCausalLM": "someone/else--modeling.Evil"},
    "dtype": "float16",
    "architectures": ["OtherForCausalLM"],
    "a_field_of_tomorrow": 1,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_config_is_found_by_its_hash(cli: Cli, damaged: Callable[[str], Path], field: str) -> None:
    out = damaged("slide")
    edit(out, lambda config: config.update({field: CHANGES[field]}))
    assert "config.json: its sha256 differs" in refused(cli, out)


@pytest.mark.parametrize("field", ["rms_norm_eps", "hidden_act", "rope_parameters", "eos_token_id"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_changed_config_is_found_by_the_source(
    cli: Cli, folders: dict[str, Path], damaged: Callable[[str], Path], field: str, hashed: bool
) -> None:
    """A hash that was made to fit, and a model saved again, which has none."""
    out = damaged("slide")
    edit_config(out, lambda config: config.update({field: CHANGES[field]}))
    if not hashed:
        drop_hashes(out)
    assert cli("verify", out, "-q").code == 0
    assert f"config.json: {field} is" in refused(cli, out, "--source", folders["pico"])


def test_settings_of_the_user_and_other_spaces_are_no_change(cli: Cli, damaged: Callable[[str], Path]) -> None:
    out = damaged("slide")
    edit(out, lambda config: config.update(slidesparse_runtime={"backend": "auto"}))
    (out / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()), indent=4))
    assert cli("verify", out, "-q").code == 0


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no files": (lambda record: record.pop("files"), "no sha256 of the files"),
    "empty files": (lambda record: record.update(files={}), "no sha256 of the files"),
    "files that are none": (lambda record: record.update(files={"model.safetensors": 1}), "1 is no text"),
    "no kernels": (lambda record: record.pop("kernels"), "no sha256 of the kernels"),
    "empty kernels": (lambda record: record.update(kernels={}), "auto_map"),
    "no reports": (lambda record: record.pop("reports"), "no sha256 of itself or of the reports"),
    "no hash of config.json": (lambda record: record.pop("sha256"), "no sha256 of itself or of the reports"),
    "a path outside": (lambda record: record["files"].update({"../x": "0"}), "names a file outside the folder: ../x"),
    "an absolute path": (lambda record: record["files"].update({"/etc/x": "0"}), "outside the folder: /etc/x"),
    "a report outside": (lambda record: record["reports"].update({"a/../../x": "0"}), "outside the folder"),
}


@pytest.mark.parametrize("fault", RECORDS)
def test_a_damaged_record_is_not_nothing_to_check(cli: Cli, damaged: Callable[[str], Path], fault: str) -> None:
    change, words = RECORDS[fault]
    out = damaged("slide")
    edit(out, lambda config: change(config["slidesparse_config"]))
    assert words in refused(cli, out)


def test_checkpoints_of_earlier_versions_are_read_all_the_same(
    cli: Cli, damaged: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without the hashes that this version added they do not pass as verified; what relayout makes of one does."""
    out = damaged("slide")
    edit(out, lambda config: [config["slidesparse_config"].pop(key) for key in ("reports", "sha256")])
    assert "converted by an earlier slideconvert" in refused(cli, out)
    assert cli("relayout", out, tmp_path / "complete", "--layout", "dense").code == 0
    assert cli("verify", tmp_path / "complete", "-q").code == 0


@pytest.mark.parametrize(("name", "field", "value"), [("solved", "kept_groups", 7), ("slide", "slid_columns", 8)])
def test_numbers_that_follow_from_the_pattern(
    cli: Cli, damaged: Callable[[str], Path], name: str, field: str, value: int
) -> None:
    out = damaged(name)
    entries = json.loads((out / "config.json").read_text())["slidesparse_config"]["layers"]
    linear = next(linear for linear, entry in entries.items() if field in entry)
    edit_config(out, lambda config: config["slidesparse_config"]["layers"][linear].update({field: value}))
    assert f"record of {linear}: {field} is {value}, its pattern gives {entries[linear][field]}" in refused(cli, out)


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_reports(cli: Cli, damaged: Callable[[str], Path], name: str) -> None:
    out = damaged("slide")
    (out / name).write_text((out / name).read_text().replace("0", "1", 1))
    assert f"{name}: sha256 differs" in refused(cli, out)
    (out / name).unlink()
    assert cli("verify", out, "-q").code == 0, "reports are for people, who may delete them"
    (out / "README.md").write_text("My own card.")
    assert cli("verify", out, "-q").code == 0, "cards may be edited"


@pytest.mark.parametrize(
    "name", ["more.safetensors", "pytorch_model.bin", "adapter_config.json", "tokenizer.json", "modeling_x.py", "x.so",
             "custom_generate/generate.py", "kernels/more.py"],
)  # fmt: skip
def test_files_that_nobody_listed(cli: Cli, damaged: Callable[[str], Path], name: str) -> None:
    out = damaged("slide")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("{}")
    assert f"{name}: " in (told := refused(cli, out)) and "that the record does not list" in told
    assert told.count(name) == 1


def test_files_that_no_loader_reads_are_named(cli: Cli, damaged: Callable[[str], Path]) -> None:
    out = damaged("slide")
    (out / "notes.txt").write_text("mine")
    (out / ".gitattributes").write_text("")
    told = json.loads(cli("verify", out, "--json").out)
    assert told["sound"] and told["notes"] == ["the record does not list notes.txt: not compared with anything"]


def found(out: Path) -> bool:
    """Whether verify finds a fault. Any other exception than ours fails the test."""
    try:
        return bool(verify_checkpoint(Checkpoint.open(out)).faults)
    except SlideConvertError:
        return True


@pytest.mark.parametrize("name", ["slide", "solved"])
@pytest.mark.parametrize("flips", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits(folders: dict[str, Path], tmp_path: Path, name: str, flips: int) -> None:
    """One bit of any file but the card, which may be edited. Every file has the same share, half of them config.json's:
    the code would take most of the bits else."""
    out = tmp_path / "out"
    shutil.copytree(folders[name], out)
    chance = random.Random(f"{name} {flips}")
    files = [file for file in pico.files(out) if file != "README.md"]
    missed, flipped = [], 0
    while flipped < flips:
        path = out / ("config.json" if flipped % 2 else chance.choice(files))
        before = path.read_bytes()
        position, bit = chance.randrange(len(before)), chance.randrange(8)
        after = bytearray(before)
        after[position] ^= 1 << bit
        if path.name == "config.json" and same_json(before, bytes(after)):
            continue  # 1e-05 and 1E-05
        flipped += 1
        path.write_bytes(after)
        if not found(out):
            missed.append((str(path.relative_to(out)), position, bit, before[max(0, position - 20) : position + 20]))
        path.write_bytes(before)
    assert not missed
    assert not found(out)


def same_json(before: bytes, after: bytes) -> bool:
    try:
        return bool(json.loads(before) == json.loads(after))
    except ValueError:
        return False
