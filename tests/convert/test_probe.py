"""`plan --probe`: small models are converted, timed and deleted, and the plan tells the time of each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import slideconvert
from slideconvert import PlanOptions
from slideconvert.api.convert import convert_source
from slideconvert.api.miniature import narrowed
from slideconvert.models.shapes import SHAPES
from slideconvert.plan.seconds import Shares
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import calibrated_by, write_text

MAGNITUDE = ("--method", "magnitude", "--pattern", "2_4", "--device", "cpu")


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """The config.json of each small model as it is converted, and its recipe."""
    found = []

    def watched(source: Path, out: Path, recipe: Any, *rest: Any) -> Any:
        found.append((json.loads((source / "config.json").read_text()), recipe))
        return convert_source(source, out, recipe, *rest)

    monkeypatch.setattr("slideconvert.api.probe.convert_source", watched)
    return found


def test_the_time_of_each_stage(cli: Cli, source: Path, tmp_path: Path, sizes: list[Any]) -> None:
    before = pico.files(tmp_path)
    done = cli("plan", source, tmp_path / "new" / "out", *MAGNITUDE, "--probe", "--json", "--shard-gb", 0.00001)
    assert done.code == 0, done.err
    told = json.loads(done.out)["time"]
    assert list(told["stages"]) == ["import", "plan", "check", "convert", "finish", "verify"]
    assert all(seconds >= 0 for seconds in told["stages"].values()) and told["stages"]["verify"] > 0
    assert told["seconds"] == pytest.approx(sum(told["stages"].values()))
    assert (told["device"], told["ranks"], told["planned"]["layers"]) == ("cpu", 1, pico.LAYERS)
    assert [config["hidden_size"] for config, _ in sizes] == [32, 32, 64]  # the first to warm up
    assert {config["num_hidden_layers"] for config, _ in sizes} == {2}
    assert pico.files(tmp_path) == before and not (tmp_path / "new").exists()


def test_calibration_and_training_are_told(cli: Cli, source: Path, tmp_path: Path, sizes: list[Any]) -> None:
    words = calibrated_by(write_text(tmp_path / "text.jsonl"), source, "--device", "cpu")
    train = ("--block-epochs", 1, "--end-epochs", 1, "--generated", 9)
    shown = cli("plan", *words, *train, "--text", tmp_path / "text.jsonl", "--probe", "--ranks", 2)
    assert shown.code == 0, shown.err
    rows = {line.split()[0]: line.split()[1:] for line in shown.out.partition("\nTime")[2].splitlines() if line.split()}
    assert list(rows)[2:] == [
        *("import", "plan", "text", "check", "smooth", "generate", "calibrate", "targets", "train", "finish", "verify"),
        *("compare", "source", "output", "time", "probe"),
    ]
    assert rows["text"] == rows["source"] == rows["output"] == ["not", "estimated"]
    assert "on 2 processes" in " ".join(rows["time"]) and "without text, source, output" in shown.out
    samples = [(recipe.calibration.samples, recipe.generated) for _, recipe in sizes]
    assert samples == [(8, 8), (8, 8), (8, 8), (16, 16)]  # 9 for 9 in the plan


def test_sequences_and_heads_shrink_with_the_width() -> None:
    config = SHAPES["Qwen2.5-7B"]
    small = narrowed(config, 2)
    assert (small["hidden_size"], small["intermediate_size"], small["head_dim"]) == (896, 4736, 128)
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (7, 1)
    assert small["vocab_size"] == config["vocab_size"] // 4 * 2 // config["num_hidden_layers"]
    own = narrowed(config, 0)
    assert all(own[name] == config[name] for name in ("hidden_size", "intermediate_size", "num_key_value_heads"))


def test_the_number_of_heads_divides_the_width() -> None:
    """Nine heads of 64, three of keys: halved, three heads and a width that they divide, which transformers demands."""
    config = {**SHAPES["Llama-3.2-1B"], "hidden_size": 576, "intermediate_size": 1536}
    small = narrowed({**config, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}, 1)
    assert (small["hidden_size"], small["num_attention_heads"], small["num_key_value_heads"]) == (384, 3, 1)


def test_what_cannot_be_timed_is_refused(cli: Cli, source: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("method: magnitude\npattern: 2:8\nrules:\n  - {match: 'model.layers.1.*', pattern: '2:4'}\n")
    refused = cli("plan", source, "--recipe", rules, "--device", "cpu", "--probe")
    assert refused.code == 2 and "model.layers.1.self_attn.q_proj is converted to" in refused.err
    assert cli("sparsify", source, tmp_path / "out", *MAGNITUDE, "-q").code == 0
    refused = cli("plan", tmp_path / "out", *MAGNITUDE, "--probe")
    assert refused.code == 2 and "quantized or pruned already" in refused.err
    refused = cli("plan", source, *MAGNITUDE[:-1], "cuda:99", "--probe")
    assert refused.code == 2 and "device cuda:99" in refused.err


def test_from_python_the_time_of_planning_is_left_out(source: Path) -> None:
    options = PlanOptions(method="magnitude", device="cpu")
    found = slideconvert.probe(slideconvert.plan(source, options), options)
    assert list(found.stages) == ["check", "convert", "finish", "verify"]
    assert found.seconds == sum(seconds for seconds in found.stages.values() if seconds is not None)


def test_the_busiest_of_many_ranks_has_the_largest_file(source: Path) -> None:
    made = slideconvert.plan(source, PlanOptions(method="magnitude", shard_gb=2e-5))
    sizes = [sum(unit.bytes for unit in shard.units) for shard in made.shards]
    shares = Shares.of(made, len(sizes))
    assert len(sizes) > 2 and shares.files == max(sizes) / sum(sizes)
    assert shares.sequences == shares.block_batches == shares.end_batches == 1 / len(sizes)  # nothing is trained
