"""Plans without weights: config.json alone says what the weights would, and a Hub id is planned without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.checkpoint.snapshot import Snapshot
from slideconvert.errors import InputError
from slideconvert.hub.snapshot import open_folder
from slideconvert.hub.source import open_for_planning
from slideconvert.models.meta import meta_checkpoint, open_or_describe
from slideconvert.plan.plan import make_plan
from slideconvert.plan.recipe import parse_recipe
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.helpers.demo import DEMO
from tests.helpers.hub_models import MODEL, sentence
from tests.helpers.hub_server import HubServer
from tests.helpers.model_configs import PROMISED

pytest_plugins = ["tests.helpers.hub_fixtures"]

WORDS: tuple[dict[str, Any], ...] = (
    {"scheme": "int8", "pattern": "2:8", "layout": "slide", "preset": "balanced"},
    {"scheme": "fp8", "pattern": "2:10", "layout": "dense", "preset": "quality", "shard_gb": "0.00005"},
    {"scheme": "bf16", "pattern": "2:4", "layout": "dense", "method": "magnitude"},
)

LATENT = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
PACKED = LATENT | {"quantization_mode": "offline"}


def bare(folder: Path, source: Path) -> Path:
    """A folder with nothing but the config.json of `source`."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    return folder


def with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}


def with_head_norms(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    norms = [f"model.layers.{n}.self_attn.{part}_norm.weight" for n in range(pico.LAYERS) for part in "qk"]
    return tensors | {name: torch.ones(16, dtype=torch.bfloat16) for name in norms}


def model(kind: str, folder: Path) -> Path:
    """Random models of all kinds that can be converted."""
    if kind == "demo":
        return DEMO
    if kind == "qwen2":
        return pico.write(folder, pico.weights(bias=True), {"model_type": "qwen2", "use_sliding_window": False})
    if kind == "qwen3":
        return pico.write(folder, with_head_norms(pico.weights()), {"model_type": "qwen3", "head_dim": 16})
    if kind == "bitnet":
        norms = {"self_attn.attn_sub_norm": pico.HIDDEN, "mlp.ffn_sub_norm": pico.INNER}
        beside = {
            f"model.layers.{number}.{name}.weight": torch.ones(size, dtype=torch.bfloat16)
            for number in range(pico.LAYERS)
            for name, size in norms.items()
        }
        return pico.write(folder, pico.weights() | beside, {"model_type": "bitnet", "quantization_config": LATENT})
    if kind == "mistral in shards, untied":
        return pico.write(
            folder, with_head(pico.weights()), {"model_type": "mistral", "tie_word_embeddings": False}, shards=3
        )
    if kind == "float16":
        config = {"dtype": None, "torch_dtype": "float16"}
        return pico.write(folder, pico.weights(torch.float16), config)
    if kind == "float32":
        return pico.write(folder, pico.weights(torch.float32), {"dtype": "torch.float32"})
    return pico.write(folder, pico.weights(), {"dtype": None})


KINDS = ("demo", "llama", "qwen2", "qwen3", "bitnet", "mistral in shards, untied", "float16", "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_config_alone_tells_what_the_weights_tell(tmp_path: Path, kind: str) -> None:
    whole = model(kind, tmp_path / "model")
    drawn, opened = meta_checkpoint(bare(tmp_path / "bare", whole)), Checkpoint.open(whole)
    assert {name: placed.spec for name, placed in drawn.tensors.items()} == {
        name: placed.spec for name, placed in opened.tensors.items()
    }
    assert (drawn.shard_store.known_by, opened.shard_store.known_by) == ("config.json", "weights")
    for words in WORDS:
        recipe, snapshot = parse_recipe(words, "test"), Snapshot(whole, "model", None)
        by_config, by_weights = make_plan(snapshot, recipe, drawn), make_plan(snapshot, recipe)
        assert by_config.linears == by_weights.linears
        assert by_config.shards == by_weights.shards
        assert (by_config.bytes_before, by_config.bytes_after, by_config.peak_memory, by_config.notes) == (
            by_weights.bytes_before,
            by_weights.bytes_after,
            by_weights.peak_memory,
            by_weights.notes,
        )


@pytest.mark.parametrize("published", PROMISED, ids=lambda published: published.hub_id)
def test_sketches_of_published_models_have_all_their_parameters(tmp_path: Path, published: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.config))
    drawn = meta_checkpoint(tmp_path)
    assert drawn.bytes == 2 * published.parameters
    assert {placed.spec.dtype for placed in drawn.tensors.values()} == {"BF16"}


def test_plan_of_a_folder_without_weights(cli: Cli, source: Path, tmp_path: Path) -> None:
    folder = bare(tmp_path / "bare", source)
    by_weights, by_config = (json.loads(cli("plan", path, *MAGNITUDE, "--json").out) for path in (source, folder))
    assert (by_weights.pop("known_by"), by_config.pop("known_by")) == ("weights", "config.json")
    assert by_weights | {"source": "bare"} == by_config
    said = " ".join(cli("plan", folder, *MAGNITUDE).out.split())
    assert "Planned from config.json and its architecture alone: no weights were looked at" in said
    assert "Planned from" not in cli("plan", source, *MAGNITUDE).out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]


def test_nothing_but_a_plan_comes_of_a_sketch(cli: Cli, source: Path, tmp_path: Path) -> None:
    folder = bare(tmp_path / "bare", source)
    outcome = cli("convert", folder, tmp_path / "out", *MAGNITUDE)
    assert outcome.code == 2 and "no safetensors weights" in outcome.err and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"contains config\.json but no weights .*can only be planned"):
        meta_checkpoint(folder).read("model.norm.weight")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "unknown architecture: config.json has model_type 'gpt2'"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"intermediate_size": 0}, "intermediate_size = 0, a whole number from 1"),
        ({"vocab_size": "many"}, "vocab_size = many, a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"num_attention_heads": 5, "head_dim": None}, "transformers cannot build this model"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "the weights are quantized already"),
        ({"model_type": "bitnet", "quantization_config": PACKED}, "the weights are quantized already"),
        ({"slidesparse_config": {}}, "the weights are quantized already"),
    ],
)
def test_configs_that_do_not_suffice(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**pico.CONFIG, **change}))
    with pytest.raises(InputError) as error:
        open_or_describe(tmp_path)
    assert words in sentence(error)


@pytest.mark.parametrize("left", ["model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_folder_with_some_weights_is_not_sketched(tmp_path: Path, source: Path, left: str) -> None:
    folder = bare(tmp_path / "bare", source)
    (folder / left).write_bytes(b"")
    with pytest.raises(InputError, match="safetensors"):
        open_or_describe(folder)


# ---- on the Hub


def hub_plan(cli: Cli, *words: object) -> dict[str, Any]:
    outcome = cli("plan", "org/model", *MAGNITUDE, *words, "--json")
    assert outcome.code == 0, outcome.err
    return {key: value for key, value in json.loads(outcome.out).items() if key not in ("source", "revision")}


def local_plan(cli: Cli, folder: Path, known_by: str, *words: object) -> dict[str, Any]:
    made = json.loads(cli("plan", folder, *MAGNITUDE, *words, "--json").out)
    return {**{key: value for key, value in made.items() if key not in ("source", "revision")}, "known_by": known_by}


def fetched(hub: HubServer) -> set[str]:
    return {request.path.rpartition("/")[2] for request in hub.requests if not request.path.startswith("/api/")}


def test_plan_of_a_hub_id_fetches_its_config_alone(cli: Cli, hub: HubServer, source: Path) -> None:
    old = hub.add_repo("org/model", pico.files(source))
    made = hub_plan(cli)
    assert made == local_plan(cli, source, "config.json")
    assert fetched(hub) == {"config.json"}
    hub.add_repo("org/model", {**pico.files(source), "config.json": b"{}"})
    hub.requests.clear()
    assert hub_plan(cli, "--revision", old) == made
    assert all(old in request.path for request in hub.requests)
    # Nothing of that makes the snapshot count as complete.
    snapshot = open_folder(open_for_planning("org/model", revision=old)[0].path)
    with pytest.raises(InputError, match="no safetensors weights"):
        Checkpoint.open(snapshot.path)
    assert cli("download", "org/model", "--revision", old).code == 0
    assert Checkpoint.open(snapshot.path).bytes == Checkpoint.open(source).bytes
    hub.requests.clear()
    assert hub_plan(cli, "--revision", old) == local_plan(cli, source, "weights")
    assert not hub.requests


def test_plan_without_a_network(
    cli: Cli, hub: HubServer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/model", pico.files(source))
    made = hub_plan(cli)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_plan(cli) == made  # of what the first one left in the cache
    for words in ((), ("--low-disk",)):
        outcome = cli("convert", "org/model", tmp_path / "out", *MAGNITUDE, *words)
        assert outcome.code == 2 and "is not in the local cache, and HF_HUB_OFFLINE forbids" in outcome.err
    assert "org/other is not in the local cache" in cli("plan", "org/other").err


def test_plan_of_what_cannot_be_converted(cli: Cli, hub: HubServer, source: Path, tmp_path: Path) -> None:
    hub.add_repo("org/gated", pico.files(source), gated=True)
    outcome = cli("plan", "org/gated")
    assert outcome.code == 2 and "org/gated is gated, and no token was sent" in outcome.err
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert "only as pickles" in cli("plan", "org/old").err
    hub.add_repo("org/odd", {**MODEL, "config.json": b'{"model_type": "gpt2"}'})
    assert "unknown architecture" in cli("plan", "org/odd").err
    hub.add_repo("org/w8a8", pico.files(pico.w8a8(tmp_path / "w8a8")))
    assert "the weights are quantized already" in cli("plan", "org/w8a8").err
    assert fetched(hub) == {"config.json"}
