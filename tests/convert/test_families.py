"""Every registered family, from planning to logits: a tiny random model that transformers itself built and wrote.

A family that is registered without a case in tests/helpers/family_models.py fails here.
"""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, modeling_utils

from slideconvert.allocate.fused import fuse
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.decoder import Decoder
from slideconvert.models.families import FAMILIES, decoder_linears
from slideconvert.models.load import load_model
from slideconvert.models.meta import meta_checkpoint
from slideconvert.permute.layer import permute_layer
from tests.conftest import MAGNITUDE, Cli
from tests.helpers.calibrated import FLAGS
from tests.helpers.family_models import SHAPES, write

TOKENS = torch.randint(2, SHAPES["vocab_size"], (3, 24), generator=torch.Generator().manual_seed(0))
ROUNDS = {
    "by weights alone": MAGNITUDE,
    "balanced": ("--preset", "balanced", *FLAGS),
    "quality": ("--preset", "quality", "--block-epochs", "1", "--end-epochs", "1", *FLAGS),
}

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models that were written, by family: each test asks `model` for its own."""
    return {"": tmp_path_factory.mktemp("families")}


@pytest.fixture
def model(family: str, sources: dict[str, Path]) -> Path:
    if family not in sources:
        sources[family] = write(sources[""] / family, family)
    return sources[family]


def stock(folder: Path) -> Any:
    """The checkpoint as transformers without us loads it, every tensor accounted for, activations not rounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_utils, "get_hf_quantizer", modeling_utils.get_hf_quantizer.__wrapped__)
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    logits(model)  # compressed-tensors unpacks on the first forward pass
    for module in model.modules():
        module.quantization_enabled = False
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=TOKENS, use_cache=False).logits


@families
def test_the_model_is_what_a_config_alone_describes(family: str, model: Path, tmp_path: Path) -> None:
    """Names, shapes, norms and ties of the descriptor are those of the checkpoint."""
    whole, config = Checkpoint.open(model), json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = meta_checkpoint(tmp_path)
    assert {name: whole.spec(name) for name in whole.tensors} == {
        name: described.spec(name) for name in described.tensors
    }
    linears = decoder_linears(config)
    modules = {name for name, module in stock(model).named_modules() if isinstance(module, nn.Linear)}
    assert {linear.name for linear in linears} == modules - {FAMILIES[family].head}
    norms = {name for name in whole.tensors if "norm" in name} - {f"{FAMILIES[family].final_norm}.weight"}
    assert set(FAMILIES[family].layer_norms(config)) == norms
    groups = fuse({linear: whole.spec(f"{linear.name}.weight").shape for linear in linears})  # type: ignore[misc]
    assert len(groups) == 2 * len(FAMILIES[family].input_groups)


@families
def test_states_and_inputs_are_the_models_own(family: str, model: Path) -> None:
    """Before every layer, and before every linear: what transformers' own forward pass has there, bit for bit."""
    seen: dict[str, Tensor] = {}
    theirs, source = stock(model), Checkpoint.open(model)
    for linear in decoder_linears(source.config):
        module = theirs.get_submodule(linear.name)
        module.register_forward_pre_hook(lambda _, args, name=linear.name: seen.__setitem__(name, args[0]))
    before: list[Tensor] = []
    for layer in theirs.get_submodule(FAMILIES[family].layers):
        layer.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    logits(theirs)
    decoder = Decoder(source, torch.device("cpu"))
    decoder.record_passed(TOKENS.shape[1])
    hidden = decoder.embedding()(TOKENS)
    for number, wanted in enumerate(before):
        assert torch.equal(hidden, wanted), number
        layer = decoder.layer(number)
        for group, submodules in enumerate(decoder.architecture.input_groups):
            inputs = layer.inputs(group, hidden)
            for submodule in submodules:
                assert torch.equal(inputs, seen[f"{decoder.architecture.layer(number)}.{submodule}"]), submodule
        attended, inner = (layer.inputs(group, hidden) for group in (decoder.architecture.attended, -1))
        assert torch.equal(layer.output(hidden, attended, inner)[0], layer.run(hidden))
        hidden = layer.run(hidden)


@families
def test_permutations_of_free_channels_leave_the_logits_alone(family: str, model: Path) -> None:
    """Only sums run in another order: the logits move by a few times of what float32 rounds."""
    theirs, config = stock(model), json.loads((model / "config.json").read_text())
    before = logits(theirs)
    rounding = (before - logits(deepcopy(theirs).double())).abs().max()
    generator = torch.Generator().manual_seed(0)
    for layer in theirs.get_submodule(FAMILIES[family].layers):
        for channels in FAMILIES[family].free_channels(config).values():
            order = torch.rand(channels.shape, generator=generator).argsort(-1)
            tensors = layer.state_dict()
            moved = permute_layer(tensors, channels, order)
            assert sum(not torch.equal(moved[name], tensors[name]) for name in tensors) >= len(channels.producers) + 1
            layer.load_state_dict(moved)
    assert 0 < (logits(theirs) - before).abs().max() <= 8 * rounding


@families
@pytest.mark.parametrize("words", ROUNDS.values(), ids=ROUNDS)
def test_converts_verifies_and_computes_as_stock_transformers(
    cli: Cli, family: str, model: Path, text: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    more = () if words is MAGNITUDE else ("--calibration", text)
    assert cli("plan", model, *words, *more).code == 0
    made = cli("convert", model, out, "--scheme", "int8", "--pattern", "2:8", "--layout", "dense", *words, *more)
    assert made.code == 0, made.err
    checked = cli("verify", out, "--source", model)
    assert checked.code == 0, checked.out + checked.err
    assert (out / "channel_orders.json").exists() == ("quality" in words)
    theirs, ours = stock(out), load_model(Checkpoint.open(out), activations="float")
    expected = logits(theirs)
    rounding = (expected - logits(deepcopy(theirs).double())).abs().max()
    assert 0 < rounding < 1e-3
    assert (logits(ours) - expected).abs().max() <= 2 * rounding
    hooked = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(logits(hooked), logits(load_model(Checkpoint.open(out))))


@families
def test_perplexity_is_that_of_transformers_own_loss(cli: Cli, family: str, model: Path, text: Path) -> None:
    told = cli("eval", model, "--text", text, "--sequences", 4, "--length", 24, "--activations", "float", "--json")
    assert told.code == 0, told.err
    begin, end, words = 0, 1, 2
    stream: list[int] = []
    for line in text.read_text().splitlines():
        stream += [begin, *(int(word[1:]) + words for word in json.loads(line)["text"].split()), end]
    tokens = torch.tensor(stream[: 4 * 24]).view(4, 24)
    with torch.inference_mode():
        loss = float(stock(model)(input_ids=tokens, labels=tokens, use_cache=False).loss)
    assert json.loads(told.out)["results"][0]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_mixtures_and_wrappers_are_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    for config, said in (
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral', a mixture of 8 experts"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "'gemma3', a language model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**SHAPES, **config}))
        outcome = cli("plan", tmp_path)
        assert outcome.code == 2 and said in outcome.err.replace("\n", " ")
