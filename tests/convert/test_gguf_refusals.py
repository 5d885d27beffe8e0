"""GGUF files that cannot be used: one clear line, exit code 2, nothing written. Interrupted and changed ones."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from huggingface_hub import constants

from slideconvert.errors import InputError
from slideconvert.hub.source import resolve
from tests.conftest import MAGNITUDE, Cli
from tests.convert.test_bad_input import refused
from tests.helpers import pico
from tests.helpers.mortal import Death, die, watch

pytest.importorskip("gguf", reason="needs the extra gguf")
from tests.helpers import gguf_models

WORDS = (*MAGNITUDE, "--pattern", "2_8", "-q")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


def shortened(by: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:-by]) and None


def cut(to: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:to]) and None


def patched(old: bytes, new: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = path.read_bytes()
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))

    return spoil


def after(name: bytes, skip: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite the bytes `skip` after a name that occurs once."""

    def spoil(path: Path) -> None:
        data = bytearray(path.read_bytes())
        assert data.count(name) == 1
        place = data.index(name) + len(name) + skip
        data[place : place + len(value)] = value
        path.write_bytes(data)

    return spoil


def fields(**changes: Any) -> Callable[[Path], None]:
    return lambda path: gguf_models.write(path, **changes) and None


def tensors(change: Callable[[Any], object], **config: Any) -> Callable[[Path], None]:
    """Write a model whose tensors were changed, by the writer, before the file is finished."""

    def spoil(path: Path) -> None:
        finish = gguf_models.finish
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf_models, "finish", lambda writer: (change(writer), finish(writer)))
            gguf_models.write(path, gguf_models.model(**config))

    return spoil


def number(value: int, letter: str) -> bytes:
    return struct.pack(f"<{letter}", value)


Q = b"blk.0.attn_q.weight"
KIND = 4 + 2 * 8  # after the name of a matrix: how many dimensions, and which
FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated data": (shortened(1000), ("ends at byte", "tensor blk.", "download or copy it again")),
    "truncated in the fields": (cut(1000), ("ends inside", "1,000 bytes")),
    "truncated in the header": (cut(10), ("ends inside the number of tensors",)),
    "empty": (cut(0), ("not a GGUF file", "0 bytes", "begins with nothing")),
    "another file": (lambda path: path.write_text("<html>") and None, ("not a GGUF file", "3c68746d")),
    "another version": (patched(b"GGUF\x03", b"GGUF\x07"), ("GGUF version 7", "2 and 3")),
    "big-endian": (patched(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), ("version 50331648", "little-endian")),
    "more fields than there are": (
        lambda path: path.write_bytes(path.read_bytes()[:16] + number(1 << 62, "Q") + path.read_bytes()[24:]) and None,
        ("model.gguf",),
    ),
    "an array longer than the file": (
        after(b"tokenizer.ggml.merges", 8, number(1 << 60, "Q")),
        ("ends inside tokenizer.ggml.merges",),
    ),
    "a field of unknown type": (
        after(b"llama.block_count", 0, number(99, "I")),
        ("field llama.block_count has type 99",),
    ),
    "a tensor of unknown type": (after(Q, KIND, number(250, "I")), ("blk.0.attn_q.weight has type 250", "upgrade")),
    "a tensor of a type that is none of weights": (
        after(Q, KIND, number(26, "I")),
        ("blk.0.attn_q.weight has type I32", "cannot dequantize"),
    ),
    "a tensor twice": (patched(b"blk.0.attn_q.weight", b"blk.0.attn_v.weight"), ("duplicated", "attn_v")),
    "a name that is not text": (patched(b"blk.0.attn_q.weight", b"blk.0.attn_\xffq.weigh"), ("model.gguf",)),
    "unknown architecture": (fields(general__architecture="mamba"), ("'mamba'", "llama, qwen2, qwen3")),
    "no architecture": (fields(general__architecture=None), ("general.architecture is missing",)),
    "no sizes": (fields(llama__block_count=None), ("field llama.block_count is missing",)),
    "a size of another type": (fields(llama__block_count="two"), ("field llama.block_count is two",)),
    "absurd sizes": (fields(llama__block_count=2**31), ("num_hidden_layers",)),
    "other sizes": (fields(llama__feed_forward_length=128), ("ffn_gate.weight has shape [96, 64]", "[128, 64]")),
    "heads that do not divide": (fields(llama__attention__head_count=3), ("cannot build this model",)),
    "experts": (fields(llama__expert_count=8), ("mixture of 8 experts",)),
    "scaled rotary embedding": (fields(llama__rope__scaling__type="yarn"), ("scaling 'yarn'", "safetensors version")),
    "rotary divisors of another rule": (
        tensors(lambda writer: writer.add_tensor("rope_freqs.weight", numpy.linspace(1, 7, 8, dtype=numpy.float32))),
        ("rope_freqs.weight", "another rule"),
    ),
    "a tensor that the model has not": (
        tensors(lambda writer: writer.add_tensor("blk.0.ffn_gate_inp.weight", numpy.ones((4, 4), numpy.float32))),
        ("blk.0.ffn_gate_inp.weight", "does not belong to a llama"),
    ),
    "a tensor missing": (
        tensors(lambda writer: writer.tensors[0].pop("blk.1.attn_q.weight")),
        ("1 tensors of a llama are missing", "model.layers.1.self_attn.q_proj.weight"),
    ),
    "no embedding": (tensors(lambda writer: writer.tensors[0].pop("token_embd.weight")), ("no token_embd.weight",)),
    "no tensors": (tensors(lambda writer: writer.tensors[0].clear()), ("no tensors, only metadata",)),
    "no tokenizer": (fields(tokenizer__ggml__model=None), ("tokenizer.ggml.model is missing",)),
    "unknown tokenizer": (fields(tokenizer__ggml__model="rwkv"), ("tokenizer 'rwkv'", "llama and gpt2")),
    "unknown rule of words": (fields(tokenizer__ggml__pre="poro-chat"), ("'poro-chat'", "splits text")),
    "begin that no token is": (fields(tokenizer__ggml__bos_token_id=9999), ("bos_token_id is 9999 of 320",)),
    "merges of unknown tokens": (fields(tokenizer__ggml__merges=["never seen"]), ("model.gguf", "tokenizer")),
    "NaN": (
        lambda path: gguf_models.write(path, with_nan()) and None,
        ("model.layers.1.mlp.up_proj.weight", "nan", "row 3, column 5"),
    ),
}


def with_nan() -> Any:
    made = gguf_models.model()
    made.model.layers[1].mlp.up_proj.weight.data[3, 5] = float("nan")
    return made


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_file(cli: Cli, tmp_path: Path, cache: Path, fault: str) -> None:
    spoil, words = FAULTS[fault]
    path = tmp_path / "model.gguf"
    gguf_models.write(path)
    spoil(path)
    refused(cli("convert", path, tmp_path / "out", *WORDS), tmp_path / "out", *words)
    assert fault == "NaN" or not cache.exists()  # which is found when the weights are converted


@pytest.mark.parametrize("name", ["model-00001-of-00003.gguf", "model-00003-of-00003.gguf"])
def test_parts_are_refused_by_name(cli: Cli, tmp_path: Path, name: str) -> None:
    path = gguf_models.write(tmp_path / name).path
    refused(cli("convert", path, tmp_path / "out", *WORDS), tmp_path / "out", "one part", "llama-gguf-split --merge")


def test_parts_are_refused_by_their_field(cli: Cli, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "model.gguf", split__count=3).path
    refused(cli("convert", path, tmp_path / "out", *WORDS), tmp_path / "out", "one of 3 parts")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.gguf", "b.gguf"), ("2 GGUF files (a.gguf, b.gguf)", "the path of one of them")),
        (("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"), ("2 GGUF files", "llama-gguf-split --merge")),
    ],
)
def test_a_folder_with_several_files(cli: Cli, tmp_path: Path, names: tuple[str, ...], words: tuple[str, ...]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"GGUF")
    refused(cli("convert", folder, tmp_path / "out", *WORDS), tmp_path / "out", *words)


def test_a_file_that_does_not_exist(cli: Cli, tmp_path: Path) -> None:
    for name in ("missing.gguf", tmp_path / "missing.gguf"):  # the first could be a Hub id
        refused(cli("convert", name, tmp_path / "out", *WORDS), tmp_path / "out", "missing.gguf: no such file")


def test_options_of_the_hub_do_not_belong_to_a_file(cli: Cli, tmp_path: Path, cache: Path) -> None:
    path, out = gguf_models.write(tmp_path / "model.gguf").path, tmp_path / "out"
    refused(cli("convert", path, out, *WORDS, "--revision", "main"), out, "--revision main", "is a file")
    refused(cli("convert", path, out, *WORDS, "--low-disk"), out, "--low-disk")
    assert not cache.exists()


def test_without_the_package_it_says_which_extra(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_models.write(tmp_path / "model.gguf").path
    monkeypatch.setitem(sys.modules, "gguf", None)
    out = tmp_path / "out"
    refused(cli("convert", path, out, *WORDS), out, "needs the package gguf", "pip install 'slideconvert[gguf]'")


def test_too_little_disk_space(cli: Cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = gguf_models.write(tmp_path / "model.gguf").path, tmp_path / "out"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    refused(cli("convert", path, out, *WORDS), out, "dequantized model needs 0.06 GB", "HF_HOME", code=75)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_read(
    cli: Cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = gguf_models.write(tmp_path / "model.gguf").path, []

    def meanwhile(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "journal" and not done:
            os.utime(path, ns=(1, 1))
            done.append(name)

    watch(monkeypatch, meanwhile)
    refused(cli("convert", path, tmp_path / "out", *WORDS), tmp_path / "out", "model.gguf changed while it was read")
    assert not list(cache.rglob("*.safetensors"))


def killed(path: Path, out: Path, where: str, after: int) -> None:
    die(Death(where, after, ["convert", path, out, *WORDS]))


@pytest.mark.parametrize(("where", "after"), [("write", 0), ("write", 9), ("journal", 1), ("rename", 2), ("rename", 7)])
def test_a_folder_whose_making_was_killed_is_continued(
    cli: Cli, tmp_path: Path, cache: Path, where: str, after: int
) -> None:
    path = gguf_models.write(tmp_path / "model.gguf").path
    killed(path, tmp_path / "out", where, after)
    assert not list(cache.glob("slideconvert/gguf/*/model.safetensors"))
    left = resolve(str(path)).path
    whole = pico.files(left)
    shutil.rmtree(left)
    assert pico.files(resolve(str(path)).path) == whole


def test_a_killed_conversion_resumes_from_the_same_file_even_if_its_folder_is_gone(
    cli: Cli, tmp_path: Path, cache: Path
) -> None:
    path, out, whole = gguf_models.write(tmp_path / "model.gguf").path, tmp_path / "out", tmp_path / "whole"
    assert cli("convert", path, whole, *WORDS).code == 0
    killed(path, out, "journal", 1)
    shutil.rmtree(cache)
    assert cli("convert", path, out, *WORDS, "--resume").code == 0
    assert pico.files(out) == pico.files(whole)


def test_a_killed_conversion_does_not_resume_from_a_changed_file(cli: Cli, tmp_path: Path) -> None:
    path, out = gguf_models.write(tmp_path / "model.gguf").path, tmp_path / "out"
    assert resolve(str(path))
    killed(path, out, "journal", 1)
    gguf_models.write(path, kind="Q8_0")
    outcome = cli("convert", path, out, *WORDS, "--resume")
    assert outcome.code == 2 and "was started with other settings: source was" in outcome.err


@pytest.mark.parametrize("seed", range(150))
def test_damaged_bytes_are_refused_or_read_but_never_crash(tmp_path: Path, whole: bytes, seed: int) -> None:
    """A few bytes in front of the data of tensors are replaced: counts, lengths, types, names, values."""
    generator = numpy.random.default_rng(seed)
    data = bytearray(whole)
    for place in generator.integers(4, whole.index(b"output_norm.weight"), generator.integers(1, 4)):
        data[place] = generator.integers(0, 256)
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    try:
        assert resolve(str(path)).path.is_dir()
    except InputError as error:
        assert str(path) in error.what, error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return gguf_models.write(tmp_path_factory.mktemp("gguf") / "model.gguf").path.read_bytes()
