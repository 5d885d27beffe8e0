"""Norms and gates fused with quantization in models that transformers loads: the unfused numbers, to the bit."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from slideconvert.kernels import linear as linear_module
from slideconvert.kernels.backends import produced as groups
from slideconvert.runtime import modeling_slidesparse as modeling
from slideconvert.runtime.slidesparse_fusion import FusedLayer, FusedMLP, FusedNorm
from tests.helpers import bitnet, family_models, pico
from tests.helpers.demo import converted
from tests.helpers.serving import TOKENS, checkpoint, edit_config, grouped, logits, our_linears

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
RECIPE = {"scheme": "int8", "pattern": "2:8"}


def load(folder: Path, *, fuse: bool | None = None, kind: Any = AutoModelForCausalLM, **words: Any) -> Any:
    """A model with the setting in its config, if there is one."""
    config = AutoConfig.from_pretrained(folder)
    if fuse is not None:
        config.slidesparse_runtime = {"fuse": fuse}
    return kind.from_pretrained(folder, config=config, **{"dtype": torch.float32, **words})


def fused(model: Any) -> list[int]:
    """How many layers, MLPs and norms are fused."""
    return [sum(isinstance(module, kind) for module in model.modules()) for kind in (FusedLayer, FusedMLP, FusedNorm)]


def first_layer(model: Any) -> tuple[Any, Tensor, dict[str, Any]]:
    """The first layer of a model, an input, and what else it takes."""
    x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    angles = model.model.rotary_emb(x, torch.arange(5)[None])
    return model.model.layers[0], x, {"position_embeddings": angles, "attention_mask": None}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the log says of fusion, in a process that has said nothing yet."""
    modeling.say_once.cache_clear()
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("slidesparse").addHandler(handler)
    yield said
    logging.getLogger("slidesparse").removeHandler(handler)
    modeling.say_once.cache_clear()


def made(folder: Path, case: str) -> Path:
    """Conversions of models that differ in what stands around their linears."""
    if case == "bitnet":
        return converted(bitnet.write(folder / "source"), folder / "out", **RECIPE)
    if case in family_models.CASES:
        return converted(family_models.write(folder / "source", case), folder / "out", **RECIPE)
    name, _, biases = case.partition(" ")
    return checkpoint(folder, name, biases=bool(biases))


CASES = {
    "int8": [3, 3, 6],
    "fp8 biases": [3, 3, 6],
    "mixed": [2, 2, 4],
    "bitnet": [3, 3, 9],
    "qwen3": [2, 2, 4],
    "mistral": [2, 2, 4],
    "smollm3": [2, 2, 4],
}
"""Layers, MLPs and norms that are fused."""


@DTYPES
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_the_unfused_model(tmp_path: Path, log: list[str], case: str, dtype: torch.dtype) -> None:
    """Logits, hidden states and attentions of a prompt, and what it generates."""
    out = made(tmp_path, case)
    model, unfused = (load(out, fuse=fuse, dtype=dtype, attn_implementation="eager") for fuse in (True, False))
    assert fused(model) == CASES[case] and fused(unfused) == [0, 0, 0] and not log
    assert model.state_dict().keys() == unfused.state_dict().keys()
    words = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    tokens = TOKENS.clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        found, expected = (one(input_ids=tokens, **words) for one in (model, unfused))
    assert torch.equal(found.logits, expected.logits) and found.logits.isfinite().all()
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) and all(map(torch.equal, found[name], expected[name]))
    words = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens, **words), unfused.generate(tokens, **words))


def test_linears_that_read_one_activation_quantize_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven linears of a layer: q, k, v; o; gate, up; down."""
    model, calls = load(checkpoint(tmp_path)), []
    produce = groups.reference.produce
    monkeypatch.setattr(groups.reference, "produce", lambda *words: calls.append(words[0].text) or produce(*words))
    logits(model)
    assert calls == ["same 1e-05", "sum 1e-05", "silu"] * 3


READY = {
    "int8": {
        ("same 1e-05", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
        ("sum 1e-05", "mlp.gate_proj mlp.up_proj"),
        ("silu", "mlp.down_proj"),
    },
    "bitnet": {
        ("same 1e-05", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
        ("same 1e-05", "self_attn.o_proj"),
        ("sum 1e-05", "mlp.gate_proj mlp.up_proj"),
        ("relu2 1e-05", "mlp.down_proj"),
    },
}
"""By case, what kernels are compiled for: a producer and the linears behind it."""


@pytest.mark.parametrize("case", READY)
def test_what_calls_start_is_made_ready_when_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    asked: list[tuple[str, list[Any], torch.dtype]] = []
    monkeypatch.setattr(
        linear_module, "ready_to_produce", lambda what, dtype, who: asked.append((what.text, who, dtype))
    )
    model = load(made(tmp_path, case), dtype=torch.bfloat16)
    names = {id(module): name.partition("layers.")[2][2:] for name, module in model.named_modules()}
    assert {(what, " ".join(names[id(one)] for one in who)) for what, who, _ in asked} == READY[case]
    assert len(asked) == 3 * len(READY[case]) and {dtype for *_, dtype in asked} == {torch.bfloat16}


def test_it_is_on_by_default_and_the_setting_turns_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = checkpoint(tmp_path)
    assert fused(load(out)) == [3, 3, 6]
    edit_config(out, lambda config: config.update(slidesparse_runtime={"fuse": False}))
    assert fused(AutoModelForCausalLM.from_pretrained(out)) == [0, 0, 0]
    monkeypatch.setenv("SLIDESPARSE_FUSE", "1")
    assert fused(AutoModelForCausalLM.from_pretrained(out)) == [3, 3, 6]


def test_without_a_head(tmp_path: Path) -> None:
    out = checkpoint(tmp_path)
    model, unfused = (load(out, fuse=fuse, kind=AutoModel) for fuse in (True, False))
    assert fused(model) == [3, 3, 6]
    with torch.no_grad():
        assert torch.equal(*(one(input_ids=TOKENS).last_hidden_state for one in (model, unfused)))


# ---- where it does not match


OTHERS = {
    "gemma2": ([0, 0, 0], "Gemma2MLP has the activation GELUTanh", "Gemma2DecoderLayer computes something else"),
    "granite": ([0, 2, 0], "GraniteDecoderLayer computes something else"),
    "phi3": ([0, 0, 0], "Phi3DecoderLayer computes something else"),
    "olmo2": ([0, 2, 0], "Olmo2DecoderLayer computes something else"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_architectures_run_as_they_are_and_the_log_says_so_once(
    tmp_path: Path, log: list[str], case: str
) -> None:
    out = made(tmp_path, case)
    counts, *reasons = OTHERS[case]
    model, _ = load(out), load(out)
    assert fused(model) == counts
    assert log == [f"norms and activations are not fused with quantization: {reason}" for reason in reasons]
    tokens = TOKENS.clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        found, expected = (one(input_ids=tokens).logits for one in (model, load(out, fuse=False)))
    assert torch.equal(found, expected)


def test_linears_of_groups_have_nothing_to_share(tmp_path: Path, log: list[str]) -> None:
    assert fused(load(grouped(tmp_path))) == [0, 0, 0] and not log


def test_a_layer_of_which_a_linear_is_kept_runs_as_it_is(tmp_path: Path, log: list[str]) -> None:
    rules = [{"match": "*.0.self_attn.[qkv]_proj", "keep": "true"}, {"match": "*.1.mlp.[gu]*_proj", "keep": "true"}]
    out = converted(pico.write(tmp_path / "source"), tmp_path / "out", **RECIPE, rules=rules)
    model = load(out)
    assert fused(model) == [1, 2, 2] and torch.equal(logits(model), logits(load(out, fuse=False)))
    assert log == [
        "norms and activations are not fused with quantization: LlamaDecoderLayer has linears that are not quantized "
        "to 8 bits"
    ]


def twice(self: Any, x: Tensor) -> Tensor:
    return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def shifted(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    return self.q_proj(hidden_states) + hidden_states.mean(), None


@pytest.mark.parametrize(
    ("kind", "changed", "counts"),
    [(LlamaMLP, twice, [0, 0, 0]), (LlamaAttention, shifted, [0, 3, 0])],
    ids=["MLP", "attention"],
)
def test_modules_that_somebody_changed_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str], kind: Any, changed: Any, counts: list[int]
) -> None:
    """By their source: another forward computes something else, or reads more of what the norm makes."""
    out = checkpoint(tmp_path)
    monkeypatch.setattr(kind, "forward", changed)
    assert fused(load(out)) == counts and len(log) >= 1


# ---- what users do with a loaded model


def listened(model: Any) -> dict[str, list[Tensor]]:
    """The inputs of every module of the second layer that has one, from a run with hooks."""
    heard: dict[str, list[Tensor]] = {}
    for name, module in model.model.layers[1].named_modules():

        def hear(_: Any, given: tuple[Any, ...], words: dict[str, Any], name: str = name) -> None:
            heard[name] = [one for one in (*given, *words.values()) if isinstance(one, Tensor)]

        module.register_forward_pre_hook(hear, with_kwargs=True)
    heard["logits"] = [logits(model)]
    return heard


def test_hooks_hear_what_they_hear_in_the_unfused_model(tmp_path: Path) -> None:
    """And the numbers stay, with hooks everywhere and on single modules."""
    out = checkpoint(tmp_path)
    heard, expected = (listened(load(out, fuse=fuse)) for fuse in (True, False))
    assert heard.keys() == expected.keys() and len(heard) > 12
    for name, tensors in expected.items():
        assert len(heard[name]) == len(tensors) and all(map(torch.equal, heard[name], tensors)), name
    wanted = expected["logits"][0]
    for place in ("self_attn", "self_attn.k_proj", "post_attention_layernorm", "mlp", "mlp.up_proj", "mlp.act_fn"):
        model = load(out)
        told: list[Any] = []

        def hear(_: Any, given: tuple[Any, ...], words: dict[str, Any], told: list[Any] = told) -> None:
            told += given or [words["hidden_states"]]

        model.model.layers[1].get_submodule(place).register_forward_pre_hook(hear, with_kwargs=True)
        assert torch.equal(logits(model), wanted) and [type(one) for one in told] == [Tensor], place


class Wrapped(nn.Module):
    """As adapters wrap linears."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.base = linear

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x, Tensor)
        return 2 * self.base(x)


@pytest.mark.parametrize("place", ["self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"])
def test_linears_that_are_wrapped_after_loading_get_tensors(tmp_path: Path, place: str) -> None:
    out, found = made(tmp_path, "bitnet"), []
    for fuse in (True, False):
        model = load(out, fuse=fuse)
        model.set_submodule(f"model.layers.0.{place}", Wrapped(model.get_submodule(f"model.layers.0.{place}")))
        found.append(logits(model))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "norms", [["mlp.ffn_sub_norm"], ["self_attn.attn_sub_norm"], ["input_layernorm"], ["post_attention_layernorm"]]
)
def test_norms_of_another_dtype(tmp_path: Path, norms: list[str]) -> None:
    """Their products with the activations are float32, and so is all that follows."""
    out, found = made(tmp_path, "bitnet"), []
    for fuse in (True, False):
        layer, x, words = first_layer(load(out, fuse=fuse, dtype=torch.bfloat16))
        for name in norms:
            layer.get_submodule(name).float()
        with torch.no_grad():
            found.append(layer(x, **words))
    assert found[0].dtype == found[1].dtype == torch.float32 and torch.equal(*found)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_fused_and_independent(tmp_path: Path, how: Any) -> None:
    model = load(checkpoint(tmp_path))
    again = how(model)
    assert fused(again) == fused(model) and torch.equal(logits(again), logits(model))
    layer = again.model.layers[0]
    assert isinstance(layer, LlamaDecoderLayer) and layer.mlp.fusion[1].owner is layer.mlp
    assert not {id(linear) for linear in our_linears(model).values()} & {id(one) for one in our_linears(again).values()}


@pytest.mark.parametrize("case", ["int8", "bitnet"])
def test_torch_compile(tmp_path: Path, case: str) -> None:
    """One operator for each producer and its linears, and none for a linear alone, but for o_proj of Llama."""
    torch._dynamo.reset()
    model = load(made(tmp_path, case))
    graphs: list[torch.fx.GraphModule] = []

    def noted(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    layer, x, words = first_layer(model)
    with torch.no_grad():
        expected = layer(x, **words)
        assert torch.equal(torch.compile(layer, backend=noted)(x, **words), expected)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum("produced" in name and "getitem" not in name for name in called) == 3 + (case == "bitnet")
    assert sum("base.linear" in name for name in called) == (case == "int8")
