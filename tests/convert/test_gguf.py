"""GGUF files as sources: weights, tokens and logits are those that were written."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from slideconvert.gguf_files import model
from slideconvert.hub.source import resolve
from slideconvert.progress import silent
from tests.conftest import MAGNITUDE, Cli
from tests.helpers import pico
from tests.twins.gguf_blocks import BLOCKS, weights

pytest.importorskip("gguf", reason="needs the extra gguf")
from tests.helpers import gguf_models

DTYPES = {"F32": torch.float32, "F16": torch.float16}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "slideconvert" / "gguf"


def written_weights(written: gguf_models.Written, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the folder must hold, by the formulas of the block formats."""
    shapes = {name: tensor.shape for name, tensor in written.model.state_dict().items()}
    return {
        name: torch.from_numpy(weights(data, kind).astype(numpy.float32)).to(dtype).view(shapes[name])
        for name, (data, kind) in written.stored.items()
    }


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_weights_are_those_of_the_formulas(
    tmp_path: Path, family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "PIECE", 1000)  # an embedding in several pieces, the last of them shorter
    written = gguf_models.write(tmp_path / "model.gguf", gguf_models.model(family), kind)
    found, expected = (
        pico.read(resolve(str(written.path)).path),
        written_weights(written, DTYPES.get(kind, torch.bfloat16)),
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_k_quants_are_those_of_the_formulas(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random bytes, since the gguf package cannot quantize to them."""
    generator = numpy.random.default_rng(0)
    size, _ = BLOCKS[kind]
    scales = {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]

    def random_blocks(values: numpy.ndarray, number: Any) -> numpy.ndarray:
        if number.name != kind:
            return values
        blocks = generator.integers(0, 256, (values.size // 256, size), dtype=numpy.uint8)
        for place in scales:
            blocks[:, place : place + 2] = (
                generator.uniform(0.001, 0.01, (len(blocks), 1)).astype("<f2").view(numpy.uint8)
            )
        return blocks.reshape(values.shape[0], -1)

    monkeypatch.setattr(gguf_models.gguf, "quantize", random_blocks)
    model = gguf_models.model(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    written = gguf_models.write(tmp_path / "model.gguf", model, kind)
    found, expected = pico.read(resolve(str(written.path)).path), written_weights(written, torch.bfloat16)
    for name, tensor in expected.items():
        assert torch.allclose(found[name].float(), tensor.float(), rtol=2**-7, atol=0), name  # one rounding apart


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama 3, scaled": ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen2, other base": ("qwen2", {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
}


def divisors(model: Any) -> numpy.ndarray:
    """The divisors of rotary frequencies, as llama.cpp stores them."""
    dim, base = model.config.head_dim, model.config.rope_parameters["rope_theta"]
    plain = base ** (-numpy.arange(0, dim, 2) / dim)
    return (plain / model.model.rotary_emb.inv_freq.numpy()).astype(numpy.float32)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_that_was_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, so that nothing but an error of rows, names or fields makes a difference."""
    family, config = MODELS[name]
    model = gguf_models.model(family, **config)
    if "rope_scaling" in config:
        finish = gguf_models.finish

        def with_divisors(writer: Any) -> None:
            writer.add_tensor("rope_freqs.weight", divisors(model))
            finish(writer)

        monkeypatch.setattr(gguf_models, "finish", with_divisors)
    path = gguf_models.write(tmp_path / "model.gguf", model).path
    read = AutoModelForCausalLM.from_pretrained(resolve(str(path)).path, dtype="auto").eval()
    tokens = torch.randint(0, gguf_models.VOCABULARY, (2, 400), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(read(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("rule", gguf_models.RULES)
def test_tokens_are_those_of_the_tokenizer_that_was_written(tmp_path: Path, rule: str) -> None:
    words = gguf_models.tokenizer(rule)
    path = gguf_models.write(tmp_path / "model.gguf", words=words, rule=rule, tokenizer__chat_template="{{ hi }}").path
    found = PreTrainedTokenizerFast.from_pretrained(resolve(str(path)).path)
    assert found(gguf_models.TEXT)["input_ids"] == words.encode(gguf_models.TEXT, add_special_tokens=False).ids
    plain = "It's 12345 naïve cafés,\n\n  twice"
    assert found.decode(found(plain)["input_ids"]) == plain
    assert (found.bos_token, found.eos_token, found.pad_token) == (gguf_models.BEGIN, gguf_models.END, None)
    assert found.chat_template == "{{ hi }}"


def test_a_tokenizer_begins_and_ends_texts_if_its_file_says_so(tmp_path: Path) -> None:
    flags = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__add_eos_token": True}
    path = gguf_models.write(tmp_path / "model.gguf", **flags).path
    found = PreTrainedTokenizerFast.from_pretrained(resolve(str(path)).path)
    begin, end, plain = found.bos_token_id, found.eos_token_id, found("one", add_special_tokens=False)["input_ids"]
    assert found("one")["input_ids"] == [begin, *plain, end]


def pieces_of(text: str, scores: dict[str, float]) -> list[str]:
    """The twin of SentencePiece's BPE: merges the neighbours whose union has the best score, the leftmost first."""
    found = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [(scores[a + b], -at) for at, (a, b) in enumerate(pairwise(found)) if a + b in scores]
        if not unions:
            break
        at = -max(unions)[1]
        found[at : at + 2] = [found[at] + found[at + 1]]
    return [
        part for piece in found for part in ([piece] if piece in scores else [f"<0x{b:02X}>" for b in piece.encode()])
    ]


def test_tokens_of_sentence_pieces_are_those_of_their_scores(tmp_path: Path) -> None:
    words = ["th", "he", "the", "▁t", "▁the", "▁s", "se", "es", "▁se", "ns", "en", "ens", "sens", "▁sen", "▁▁", "to"]
    letters = sorted(set("▁thesnoarmi,T"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    tokens += [f"w{number}" for number in range(gguf_models.VOCABULARY - len(tokens))]
    ranks = numpy.random.default_rng(0).permutation(len(tokens) - 259).tolist()  # numbers of tokens tell nothing
    scores = {token: -float(rank) for rank, token in zip(ranks, tokens[259:], strict=True)}
    path = tmp_path / "model.gguf"
    gguf_models.write(
        path,
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre=None,
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[*[0.0] * 259, *scores.values()],
        tokenizer__ggml__token_type=[2, 3, 3, *[gguf_models.BYTE] * 256, *[1] * (len(tokens) - 259)],
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__unknown_token_id=0,
    )
    found = PreTrainedTokenizerFast.from_pretrained(resolve(str(path)).path)
    for text in ("the sense", "to the  senses, the ten", "These häts, the sen"):
        ids = found(text)["input_ids"]
        assert found.convert_ids_to_tokens(ids) == ["<s>", *pieces_of(text, scores)]
        assert found.decode(ids, skip_special_tokens=True) == text


def test_every_command_reads_a_gguf_file_and_tells_what_it_was(cli: Cli, tmp_path: Path) -> None:
    fields = {"general__license": "apache-2.0", "general__languages": ["en", "de"]}
    path = gguf_models.write(tmp_path / "model.gguf", kind="Q4_1", **fields).path
    told = "GGUF Q4_1, dequantized to BF16 (tensors: 15 Q4_1, 5 F32)"
    planned = cli("plan", path, *MAGNITUDE, "--pattern", "2_8", "--json")
    assert planned.code == 0 and told in " ".join(json.loads(planned.out)["notes"])
    out = tmp_path / "out"
    assert cli("convert", path, out, *MAGNITUDE, "--pattern", "2_8", "-q").code == 0
    assert json.loads((out / "report.json").read_text())["source"] == "model"
    assert told in " ".join(json.loads((out / "report.json").read_text())["notes"])
    assert told in (out / "report.html").read_text() and "GGUF Q4\\_1, dequantized" in (out / "README.md").read_text()
    assert (out / "README.md").read_text().startswith("---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n")
    assert (out / "tokenizer.json").is_file()
    assert cli("verify", out, "--source", path, "-q").code == 0
    assert cli("sparsify", path, tmp_path / "sparse", *MAGNITUDE, "--pattern", "2_8", "-q").code == 0
    assert cli("quantize", path, tmp_path / "int8", "--scheme", "int8", "-q").code == 0
    inspected = cli("inspect", path, "--json")
    assert inspected.code == 0 and len(json.loads(inspected.out)["linears"]) == 7 * gguf_models.LAYERS
    assert cli("generate", path, "--prompt", "It", "-q").code == 0
    text = tmp_path / "text.txt"
    text.write_text(gguf_models.TEXT * 20)
    rows = json.loads(cli("eval", path, out, "--text", text, "--length", "32", "--json").out)["results"]
    assert rows[0]["perplexity"] > 1 and rows[0]["ckpt"] == str(path) and rows[1]["ratio"] != 1


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_floats_are_told_as_such(cli: Cli, tmp_path: Path, kind: str) -> None:
    path = gguf_models.write(tmp_path / "model.gguf", kind=kind).path
    planned = cli("plan", path, *MAGNITUDE, "--pattern", "2_8", "--json")
    assert f"was GGUF {kind} (tensors: 15 {kind}, 5 F32)" in " ".join(json.loads(planned.out)["notes"])


def test_a_folder_with_one_gguf_file_is_that_file(cli: Cli, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    gguf_models.write(folder / "model.gguf")
    assert resolve(str(folder)) == resolve(str(folder / "model.gguf"))
    assert len(list(cache.iterdir())) == 1
    pico.write(folder)  # with weights of its own, the folder is what it always was
    assert resolve(str(folder)).path == folder


def test_the_weights_are_read_once_and_kept_in_the_cache_that_is_named(
    cli: Cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_models.write(tmp_path / "model.gguf").path
    named = tmp_path / "cache"
    words = (*MAGNITUDE, "--pattern", "2_8", "-q", "--source-cache", named)
    assert cli("convert", path, tmp_path / "one", *words).code == 0
    assert list(named.glob("gguf/*/model.safetensors")) and not cache.exists()
    path.write_bytes(path.read_bytes())  # a new time of change: another file
    before = set(named.glob("gguf/*"))
    os.utime(path, ns=(1, 1))
    assert cli("convert", path, tmp_path / "two", *words).code == 0
    assert set(named.glob("gguf/*")) > before
    assert pico.read(tmp_path / "one").keys() == pico.read(tmp_path / "two").keys()


def test_progress_is_told(tmp_path: Path) -> None:
    path, told = gguf_models.write(tmp_path / "model.gguf").path, []
    resolve(str(path), progress=lambda *what: told.append(what))
    total = told[-1][2]
    assert {stage for stage, _, _ in told} == {"read model.gguf"} and told[0][1] == 0 and told[-1][1] == total
    resolve(str(path), progress=silent)
