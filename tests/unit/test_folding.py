"""Permutations inside a conversion: what is written computes the same, is verified and can be continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slideconvert.calibrate.engine import compress_layers
from slideconvert.calibrate.result import LayerResult
from slideconvert.calibrate.stream import StreamOptions
from slideconvert.checkpoint.files import CHANNEL_ORDERS
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.convert.pipeline import convert
from slideconvert.core.patterns import BlockPattern
from slideconvert.core.weights import floats
from slideconvert.hub.snapshot import open_folder
from slideconvert.models.load import load_model
from slideconvert.permute.fold import fold
from slideconvert.plan.calibration import Calibration
from slideconvert.plan.linear_config import parse_linear_config
from slideconvert.plan.plan import Plan, make_plan
from slideconvert.plan.presets import PRESETS, Preset
from slideconvert.plan.recipe import Recipe
from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import output_error, quality
from tests.helpers.demo import DEMO, TEXT, text_windows
from tests.helpers.serving import drop_hashes, edit_json

PERMUTING = replace(PRESETS["balanced"], permute=True)
CALIBRATION = ("--calibration", str(TEXT.with_name("calibration.jsonl")), "--samples", "8", "--length", "64")


def plan_of(source: Path, preset: Preset, **words: Any) -> Plan:
    choice = parse_linear_config(**{"scheme": "int8", "pattern": "2:8", **words})
    return make_plan(open_folder(source), Recipe(choice, layout="dense", preset=preset, calibration=Calibration()))


def results(plan: Plan, tokens: torch.Tensor, folder: Path) -> list[LayerResult]:
    runs = StreamOptions(torch.device("cpu"), "device", folder, 4096)
    return [result for _, result in compress_layers(plan, tokens, runs)]


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_only_the_order_changes_where_nothing_is_pruned(tmp_path: Path, model_type: str) -> None:
    """Folded into a model that is not compressed, the orders leave its logits alone: only sums run in another order."""
    qwen = model_type == "qwen2"
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]} if qwen else {}
    source = pico.write(tmp_path / "source", pico.weights(bias=qwen), config=config)
    tokens = torch.randint(2, pico.VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(0))
    plan = plan_of(source, PERMUTING)
    made = results(plan, tokens, tmp_path)
    assert all(set(result.permutations) == {"heads", "inner"} for result in made)
    natural = torch.arange(pico.INNER)
    assert any(not torch.equal(result.permutations["inner"], natural) for result in made)
    model = load_model(Checkpoint.open(source)).double()
    with torch.no_grad():
        before, unmoved = model(input_ids=tokens).logits, model.model.layers[0].mlp.down_proj.weight.clone()
        for number, result in enumerate(made):
            fold(
                model.get_submodule(f"model.layers.{number}"),
                result.permutations,
                plan.architecture.free_channels(plan.source.config),
            )
        after = model(input_ids=tokens).logits
    # Float64 but for transformers' norms and rotary embeddings, which compute in float32: 2**-24 of what they give.
    assert (before - after).abs().max() <= 2**-18 * before.abs().max()
    assert not torch.equal(unmoved, model.model.layers[0].mlp.down_proj.weight)


@pytest.mark.parametrize("pattern", ["2:4", "2:6", "2:8"])
def test_the_layer_computes_what_the_dense_one_nearly_does(tmp_path: Path, pattern: str) -> None:
    """Put together, permuted rows and columns fit: a mixed-up order would leave nothing of the outputs."""
    tokens = text_windows(64, 16)
    plan, folded = plan_of(DEMO, PERMUTING, pattern=pattern), load_model(Checkpoint.open(DEMO))
    dense = load_model(Checkpoint.open(DEMO))
    for number, result in enumerate(results(plan, tokens, tmp_path)):
        layer = folded.get_submodule(f"model.layers.{number}")
        fold(layer, result.permutations, plan.architecture.free_channels(plan.source.config))
        for place, weight in result.weights.items():
            BlockPattern.parse(pattern).check(floats(weight), place)
            layer.get_submodule(place).weight.data = floats(weight)
    with torch.no_grad():
        wanted, found = (model(input_ids=tokens).logits.log_softmax(-1) for model in (dense, folded))
    divergence = torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="sum") / tokens.numel()
    assert float(divergence) < {"2:4": 0.5, "2:6": 0.1, "2:8": 0.05}[pattern]


@torch.no_grad()
def down_errors(plan: Plan, found: list[LayerResult], tokens: torch.Tensor) -> list[float]:
    """The output error of each layer's down_proj, for its inputs behind all that is compressed before it."""
    model, inputs, dense = load_model(plan.source), [], []
    for layer, result in zip(model.model.layers, found, strict=True):
        fold(layer, result.permutations, plan.architecture.free_channels(plan.source.config))
        dense.append(layer.mlp.down_proj.weight.clone())
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for place, weight in result.weights.items():
            layer.get_submodule(place).weight.data = floats(weight)
    model(input_ids=tokens)
    made = [floats(result.weights["mlp.down_proj"]) for result in found]
    return [output_error(*one) for one in zip(inputs, dense, made, strict=True)]


def test_down_proj_loses_less(tmp_path: Path, short_demo: Path) -> None:
    tokens = text_windows(64, 16)
    plans = [plan_of(short_demo, preset) for preset in (PRESETS["balanced"], PERMUTING)]
    plain, ordered = (down_errors(plan, results(plan, tokens, tmp_path), tokens) for plan in plans)
    assert all(after < before for before, after in zip(plain, ordered, strict=True))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preset quality with one epoch of each training: permutations come before it."""
    monkeypatch.setitem(PRESETS, "quality", quality(1, 1))


def test_quality_writes_verifies_and_tells_it(cli: Cli, tmp_path: Path, short_demo: Path, brief: None) -> None:
    out = tmp_path / "out"
    assert cli("convert", short_demo, out, "--preset", "quality", *CALIBRATION).code == 0
    record = json.loads((out / "config.json").read_text())["slidesparse_config"]["layers"]
    told = {name.rpartition(".")[2] for name, linear in record.items() if linear.get("permuted")}
    assert told == {"v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert cli("verify", out, "--source", short_demo).code == 0
    assert "are permuted" in json.loads((out / "report.json").read_text())["notes"][0]
    # What is made of it takes the orders along: it can be compared with either source.
    dense = tmp_path / "dense"
    assert cli("relayout", out, dense, "--layout", "dense").code == 0
    assert (dense / CHANNEL_ORDERS).read_bytes() == (out / CHANNEL_ORDERS).read_bytes()
    for source in (out, short_demo):
        assert cli("verify", dense, "--source", source).code == 0


def test_orders_of_a_chain_add_up(cli: Cli, tmp_path: Path, short_demo: Path, brief: None) -> None:
    """Permuted twice: every channel can still be found in the first source, and in the one between."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert cli("sparsify", short_demo, once, "--preset", "quality", *CALIBRATION).code == 0
    assert cli("convert", once, twice, "--preset", "quality", "--pattern", "2:4", *CALIBRATION).code == 0
    first, second = (json.loads((folder / CHANNEL_ORDERS).read_text())["1"]["inner"] for folder in (once, twice))
    assert first != second and sorted(first) == sorted(second)
    for source in (once, short_demo):
        assert cli("verify", twice, "--source", source).code == 0


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda orders: orders["1"]["inner"].reverse(), "sha256 differs"),
        (lambda orders: orders["1"]["inner"].__setitem__(0, orders["1"]["inner"][1]), "is not a permutation"),
        (lambda orders: orders["1"].update(inner=["a"]), "unreadable orders"),
        (lambda orders: orders["1"].update(inner=[0.5]), "lists of integers"),
        (lambda orders: orders["1"].update(inner=[0, 1, 2]), "[3] channels of inner, but the model has [352]"),
        (lambda orders: orders["1"]["heads"].pop(), "channels of heads, but the model has"),
        (lambda orders: orders["1"].update(outer=[0, 1, 2]), "unreadable orders"),
        (lambda orders: orders.update({"77": {}}), "the model has no layer 77"),
    ],
    ids=["another", "twice", "words", "fractions", "short", "few", "unknown", "layer"],
)
def test_damaged_orders_are_named(
    cli: Cli, permuted: Path, tmp_path: Path, short_demo: Path, damage: Callable[[Any], None], told: str
) -> None:
    out = shutil.copytree(permuted, tmp_path / "out")
    edit_json(out / CHANNEL_ORDERS, damage)
    outcome = cli("verify", out, "--source", short_demo)
    assert outcome.code in (1, 2) and told in outcome.err and "Traceback" not in outcome.err


def test_missing_permutations_are_refused(cli: Cli, permuted: Path, tmp_path: Path, short_demo: Path) -> None:
    """As where transformers has saved the model again, with our record and without this file."""
    out = tmp_path / "out"
    shutil.copytree(permuted, out)
    (out / CHANNEL_ORDERS).unlink()
    drop_hashes(out)
    outcome = cli("verify", out, "--source", short_demo)
    assert outcome.code == 2 and f"{CHANNEL_ORDERS} is missing" in outcome.err
    assert cli("verify", out).code == 0
    again = tmp_path / "again"
    assert cli("relayout", out, again, "--layout", "dense").code == 0, "no less is known than before"


@pytest.fixture(scope="module")
def permuted(short_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose channels are permuted, in the slide layout."""
    out = tmp_path_factory.mktemp("permuted") / "out"
    calibration = Calibration(str(TEXT.with_name("calibration.jsonl")), 8, 64, 0)
    recipe = replace(plan_of(short_demo, PERMUTING).recipe, layout="slide", calibration=calibration)
    convert(make_plan(open_folder(short_demo), recipe), out)
    return out


def test_rules_that_keep_a_part_keep_its_order(cli: Cli, tmp_path: Path, brief: None) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "scheme: int8\npattern: 2:8\npreset: quality\nrules:\n"
        "  - {match: '*.layers.0.mlp.[gu]*_proj', keep: true}\n"
        "  - {match: '*.layers.1.self_attn.o_proj', keep: true}\n"
        "  - {match: '*.layers.2.mlp.down_proj', pattern: '2:inf'}\n"
    )
    out = tmp_path / "out"
    assert cli("convert", DEMO, out, "--recipe", recipe, *CALIBRATION).code == 0
    record = json.loads((out / "config.json").read_text())["slidesparse_config"]["layers"]
    permuted = {name.removeprefix("model.layers.") for name, linear in record.items() if linear.get("permuted")}
    assert not {name for name in permuted if name.startswith(("0.mlp", "1.self_attn", "2.mlp"))}
    assert {"0.self_attn.v_proj", "1.mlp.down_proj", "3.mlp.down_proj"} <= permuted
    assert cli("verify", out, "--source", DEMO).code == 0
