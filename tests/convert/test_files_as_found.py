"""Checkpoints as people have them: what files say beside the weights, and weights that are not those of config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import write_tokenizer
from tests.helpers.serving import drop_hashes

PROMPT = ("--prompt", "w1 w2", "--max-new-tokens", "4")
EXECUTION: dict[str, Any] = {
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "flash_attention_3",
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "torchscript": True,
}
"""Fields of config.json that say how to run a model."""


def written(folder: Path, ends: Any = 1, **config: Any) -> Path:
    """A pico model with a tokenizer. ends: eos_token_id of generation_config.json; None: there is no such file."""
    write_tokenizer(pico.write(folder, config=config))
    path = folder / "generation_config.json"
    path.unlink() if ends is None else path.write_text(json.dumps({"eos_token_id": ends}))
    return folder


def test_how_to_run_a_model_is_not_read_from_its_config(cli: Cli, text: Path, tmp_path: Path) -> None:
    """Packages that are not installed, tuples instead of objects: the same numbers, and a calibrated conversion."""
    plain, odd = written(tmp_path / "plain"), written(tmp_path / "odd", **EXECUTION)
    words = ("--text", text, "--length", "24", "--json")
    found = [cli("eval", folder, *words) for folder in (plain, odd)]
    assert [one.code for one in found] == [0, 0], found
    before, after = (json.loads(one.out)["results"][0] for one in found)
    assert before["perplexity"] == after["perplexity"] > 1
    assert cli("generate", odd, *PROMPT).out == cli("generate", plain, *PROMPT).out
    done = cli("convert", odd, tmp_path / "out", "--calibration", text, "--samples", "9", "--length", "24")
    assert done.code == 0, done.err


def test_generation_ends_at_the_end_tokens_of_both_files(cli: Cli, tmp_path: Path) -> None:
    """Servers stop at those of generation_config.json, of which config.json often names one alone."""
    every = list(range(1, pico.VOCABULARY))

    def generated(folder: Path) -> int:
        return len(cli("generate", folder, *PROMPT).out.removeprefix("w1 w2").split())

    assert generated(written(tmp_path / "one")) == 4
    assert generated(written(tmp_path / "all", every)) == 1
    assert generated(written(tmp_path / "config", None, eos_token_id=every)) == 1


@pytest.mark.parametrize("ends", ["1", 1.5, [1, "x"], True, -1, [None], {"a": 1}])
def test_end_tokens_that_are_no_numbers_are_refused(cli: Cli, tmp_path: Path, ends: Any) -> None:
    done = cli("generate", written(tmp_path / "model", ends), *PROMPT)
    said = done.err.strip().splitlines()
    assert done.code == 2 and len(said) == 1 and "generation_config.json: eos_token_id names" in said[0]


def tensors(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those of the pico model with some replaced, added, or (None) taken out; __ stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in {**pico.weights(), **named}.items() if tensor is not None}


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


UNTIED = {"tie_word_embeddings": False}
Q = "model__layers__0__self_attn__q_proj"
INCOMPLETE: dict[str, tuple[dict[str, torch.Tensor | None], dict[str, Any], str]] = {
    "no final norm": ({"model__norm__weight": None}, {}, "tensor model.norm.weight is missing"),
    "untied without head": ({}, UNTIED, "tensor lm_head.weight is missing"),
    "head alone": (
        {"model__embed_tokens__weight": None, "lm_head__weight": zeros(pico.VOCABULARY, pico.HIDDEN)}, {},
        "tensor model.embed_tokens.weight is missing",
    ),
    "more rows than words": (
        {"model__embed_tokens__weight": zeros(pico.VOCABULARY + 5, pico.HIDDEN)}, {},
        "model.embed_tokens.weight has shape [101, 64], config.json describes [96, 64]",
    ),
    "wrong head_dim": ({}, {"head_dim": 32}, "q_proj has shape [64, 64], config.json describes [128, 64]"),
    "no head_dim": (
        {f"{Q[:-6]}{part}_norm__weight".replace("0", layer): torch.ones(16) for layer in "012" for part in "qk"},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "q_proj has shape [64, 64], config.json describes [512, 64]",  # by transformers' default
    ),
    "wrong intermediate_size": ({}, {"intermediate_size": 96}, "has shape [88, 64], config.json describes [96, 64]"),
    "a bias too many": ({f"{Q}__bias": zeros(pico.HIDDEN)}, {}, "q_proj.bias belongs to a module that has none"),
    "a bias too few": ({}, {"attention_bias": True}, "self_attn.q_proj.bias is missing"),
    "a name twice": ({f"{Q}__weight_scale": zeros(pico.HIDDEN, 1)}, {}, "q_proj.weight_scale belongs to a module"),
}  # fmt: skip


@pytest.mark.parametrize("case", INCOMPLETE)
def test_weights_that_are_not_those_of_the_config_are_refused(cli: Cli, text: Path, tmp_path: Path, case: str) -> None:
    """Before any work, in one line, by every command that would use them."""
    changes, config, said = INCOMPLETE[case]
    source, out = write_tokenizer(pico.write(tmp_path / "source", tensors(**changes), config)), tmp_path / "out"
    for words in (("plan", source), ("convert", source, out), ("eval", source, "--text", text, "--length", "24")):
        done = cli(*words, *(("--method", "magnitude") if words[0] != "eval" else ()))
        assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) == 1, done
    assert not out.exists()


def test_a_tied_head_that_differs_is_refused(cli: Cli, text: Path, tmp_path: Path) -> None:
    """An equal one is the embedding, for every command."""
    embedding = pico.weights()["model.embed_tokens.weight"]
    equal = write_tokenizer(pico.write(tmp_path / "equal", tensors(lm_head__weight=embedding.clone())))
    other = write_tokenizer(pico.write(tmp_path / "other", tensors(lm_head__weight=embedding + 1)))
    words = ("--text", text, "--length", "24", "--json")
    plain = json.loads(cli("eval", written(tmp_path / "plain"), *words).out)["results"][0]["perplexity"]
    assert json.loads(cli("eval", equal, *words).out)["results"][0]["perplexity"] == plain
    for refused in (cli("eval", other, *words), cli("convert", other, tmp_path / "out", "--method", "magnitude")):
        assert refused.code == 2 and "lm_head.weight differs from the embedding" in refused.err


def test_what_the_model_does_not_have_is_left_out_and_told(cli: Cli, text: Path, tmp_path: Path) -> None:
    """As loaders leave it out: rotary buffers, layers beyond those of config.json, heads of other kinds."""
    surplus = {f"model__layers__{layer}__self_attn__rotary_emb__inv_freq": torch.ones(8) for layer in range(2)}
    surplus["score__weight"] = zeros(2, pico.HIDDEN)
    source = write_tokenizer(pico.write(tmp_path / "source", tensors(**surplus), {"num_hidden_layers": 2}))
    done = cli("plan", source, "--method", "magnitude")
    count = len(surplus) + len(pico.weights()) - len(pico.weights(layers=2))
    assert done.code == 0 and f"and {count - 1} more." in " ".join(done.out.split())
    out = tmp_path / "out"
    assert cli("convert", source, out, "--method", "magnitude").code == 0
    assert not [name for name in pico.read(out) if "inv_freq" in name or "layers.2" in name or "score" in name]
    assert cli("verify", out, "--source", source).code == 0
    for folder in (source, out):
        assert cli("eval", folder, "--text", text, "--length", "24").code == 0
        assert cli("generate", folder, *PROMPT).code == 0


def test_verify_finds_a_tensor_that_is_missing_without_hashes(cli: Cli, tmp_path: Path) -> None:
    """As after transformers saved the model again, which leaves the record's hashes out."""
    out = tmp_path / "out"
    assert cli("convert", pico.write(tmp_path / "source"), out, "--method", "magnitude").code == 0
    held = pico.read(out)
    del held["model.norm.weight"]
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    drop_hashes(out)
    done = cli("verify", out)
    assert done.code == 1 and "model.norm.weight is missing" in done.out + done.err


def spoiled(name: str, place: tuple[int, ...], value: float) -> dict[str, torch.Tensor]:
    """The tensors of an untied pico model with biases, with one element that is no number."""
    held = pico.weights(bias=True)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held[name][place] = value
    return held


QWEN: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
NOT_NUMBERS: dict[str, tuple[tuple[int, ...], float, str]] = {
    "model.embed_tokens.weight": ((90, 7), float("nan"), "nan at row 90, column 7"),
    "lm_head.weight": ((95, 63), float("inf"), "inf at row 95, column 63"),
    "model.norm.weight": ((5,), float("-inf"), "-inf at element 5"),
    "model.layers.2.post_attention_layernorm.weight": ((63,), float("nan"), "nan at element 63"),
    "model.layers.1.self_attn.k_proj.bias": ((0,), float("inf"), "inf at element 0"),
    "model.layers.2.mlp.down_proj.weight": ((9, 3), float("nan"), "nan at row 9, column 3"),
}
"""Tensors, the place and the value of an element, and what is said of it."""


@pytest.mark.parametrize("name", NOT_NUMBERS)
@pytest.mark.parametrize("method", ["magnitude", "obs"])
def test_tensors_that_are_not_finite_are_refused(
    cli: Cli, text: Path, tmp_path: Path, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the text does not reach; with calibration before any text goes through the model."""
    place, value, said = NOT_NUMBERS[name]
    source, out = write_tokenizer(pico.write(tmp_path / "source", spoiled(name, place, value), QWEN)), tmp_path / "out"
    monkeypatch.setattr("slideconvert.calibrate.run.compress_layers", lambda *_, **__: pytest.fail("too late"))
    words = ("--calibration", text, "--samples", "9", "--length", "24") if method == "obs" else ()
    done = cli("convert", source, out, "--method", method, *words)
    assert done.code == 2 and done.err.strip().splitlines()[-1].startswith(f"error: {name}: {said}"), done.err
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_models_that_compute_no_numbers_generate_nothing(cli: Cli, tmp_path: Path, name: str) -> None:
    """The head is tied to the embedding: a word that is NaN there would be the most likely one after any text."""
    held = pico.weights()
    held[name][NOT_NUMBERS[name][0]] = float("nan")
    done = cli("generate", write_tokenizer(pico.write(tmp_path / "source", held)), *PROMPT)
    assert done.code == 1 and done.err.strip().startswith("error: the logits after 2 tokens are not finite"), done
    assert done.out == ""


@pytest.mark.parametrize("name", list(NOT_NUMBERS)[:-1])
def test_verify_finds_copied_tensors_that_are_not_finite(cli: Cli, tmp_path: Path, name: str) -> None:
    """Without hashes and without a source, and also if the source has the same."""
    place, value, said = NOT_NUMBERS[name]
    held = spoiled(name, place, 1.0)
    source, out = pico.write(tmp_path / "source", held, QWEN), tmp_path / "out"
    assert cli("convert", source, out, "--method", "magnitude").code == 0
    for folder, tensors_of in ((source, held), (out, pico.read(out))):
        tensors_of[name][place] = value
        save_file(tensors_of, folder / "model.safetensors", metadata={"format": "pt"})
    drop_hashes(out)
    for words in ((), ("--source", source)):
        done = cli("verify", out, *words)
        assert done.code == 1 and f"{name}: {said}" in " ".join((done.out + done.err).split()), done


ABSURD = {
    "layers": {"num_hidden_layers": 2**31}, "more layers than tensors": {"num_hidden_layers": 900},
    "words": {"vocab_size": 10**12}, "width": {"hidden_size": 10**9}, "inner": {"intermediate_size": 10**15},
    "heads": {"num_attention_heads": 10**9}, "head": {"head_dim": 10**9}, "a number in a text": {"hidden_size": "64"},
    "a fraction": {"num_attention_heads": 4.0}, "a flag": {"num_key_value_heads": True},
    "tied": {"tie_word_embeddings": 1},
}  # fmt: skip


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_are_refused_before_memory_is_taken(
    cli: Cli, text: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command, before a model is built, though it would have no weights."""
    source = written(tmp_path / "source", **ABSURD[case])
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda *_, **__: pytest.fail("built"))
    for words in (
        ("plan", source, "--method", "magnitude"),
        ("convert", source, tmp_path / "out", "--method", "magnitude"),
        ("eval", source, "--text", text, "--length", "24"),
        ("generate", source, *PROMPT),
    ):
        done = cli(*words)
        lines = done.err.strip().splitlines()
        assert done.code == 2 and len(lines) == 1 and next(iter(ABSURD[case])) in lines[0], done


@pytest.mark.parametrize("name", ["a" * 300, "model\x00.safetensors", 5, None, ["x"]])
def test_an_index_that_names_no_files_is_refused(cli: Cli, tmp_path: Path, name: Any) -> None:
    source = pico.write(tmp_path / "source", shards=2)
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    done = cli("inspect", source)
    assert done.code == 2 and "model.safetensors.index.json: " in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", [{"a": 1}, 5, None])
def test_a_report_of_something_else_is_left_aside(cli: Cli, tmp_path: Path, name: Any) -> None:
    """It is an ornament of inspect, which reads the weights themselves."""
    out = tmp_path / "out"
    assert cli("convert", pico.write(tmp_path / "source"), out, "--method", "magnitude").code == 0
    report = json.loads((out / "report.json").read_text())
    report["layers"][0]["name"] = name
    (out / "report.json").write_text(json.dumps(report))
    done = cli("inspect", out, "--json")
    assert done.code == 0 and json.loads(done.out)["verified"] is None
