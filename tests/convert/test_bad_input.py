"""Bad input: one clear line that says what, where and the way out; exit code 2; nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MAGNITUDE, Cli, Outcome
from tests.helpers import pico

Q = "model.layers.1.self_attn.q_proj"


def refused(outcome: Outcome, out: Path, *words: str, code: int = 2) -> None:
    """The command failed as it should: this code, one line on stderr with these words, no output folder."""
    lines = outcome.err.strip().splitlines()
    assert outcome.code == code, outcome
    assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
    assert not [word for word in words if word not in lines[0]], lines[0]
    assert not out.exists() and not outcome.out


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def edit_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = pico.weights()
        tensors[f"{Q}.weight"][3, 5] = value
        pico.write(folder, tensors)

    return spoil


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"would": "run code"}))


def tensors_changed(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = pico.weights()
        for name, tensor in changes.items():
            key = name.replace("__", ".")
            if tensor is None:
                del tensors[key]
            else:
                tensors[key] = tensor
        pico.write(folder, tensors)

    return spoil


def config_changed(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**pico.CONFIG, **changes})) and None


def broken(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


SOURCES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncated, ("model.safetensors", "header describes", "again")),
    "empty file": (broken("model.safetensors", ""), ("model.safetensors", "0 bytes")),
    "garbage header": (broken("model.safetensors", "x" * 500), ("not a whole safetensors file",)),
    "pickles": (only_pickles, ("pytorch_model.bin", "pickles", "safetensors version")),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("no safetensors weights",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json is missing",)),
    "config not JSON": (broken("config.json", "{"), ("config.json", "not valid JSON")),
    "config not an object": (broken("config.json", "[]"), ("JSON object",)),
    "unknown architecture": (config_changed(model_type="mamba"), ("mamba", "supported: bitnet, cohere2")),
    "BitNet that calls itself llama": (config_changed(weight_bits=1, input_bits=8), ("weight_bits 1", "'llama'")),
    "BitNet without its norms": (config_changed(model_type="bitnet"), ("attn_sub_norm.weight", "missing")),
    "BitNet with a norm before every linear": (
        config_changed(model_type="bitnet", quantization_config={"quant_method": "bitnet", "use_rms_norm": True}),
        ("use_rms_norm", "all ternary"),
    ),
    "BitNet with a linear left out": (
        config_changed(
            model_type="bitnet",
            quantization_config={"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0.mlp.up_proj"]},
        ),
        ("model.layers.0.mlp.up_proj", "all ternary"),
    ),
    "BitNet, packed by its config alone": (
        config_changed(
            model_type="bitnet", quantization_config={"quant_method": "bitnet", "linear_class": "autobitlinear"}
        ),
        ("q_proj.weight_scale is missing",),
    ),
    "no layer count": (config_changed(num_hidden_layers=None), ("num_hidden_layers",)),
    "more layers than weights": (config_changed(num_hidden_layers=5), ("model.layers.3.", "is missing")),
    "NaN": (with_value(float("nan")), (f"{Q}.weight", "nan", "row 3, column 5")),
    "infinity": (with_value(float("-inf")), (f"{Q}.weight", "-inf", "row 3, column 5")),
    "missing tensor": (tensors_changed(**{f"{Q.replace('.', '__')}__weight": None}), (f"{Q}.weight", "missing")),
    "not a matrix": (
        tensors_changed(**{f"{Q.replace('.', '__')}__weight": torch.ones(64)}),
        (f"{Q}.weight", "[64]", "matrix"),
    ),
    "integer weights": (
        tensors_changed(**{f"{Q.replace('.', '__')}__weight": torch.ones(64, 64, dtype=torch.int32)}),
        (f"{Q}.weight", "I32"),
    ),
    "too narrow": (
        tensors_changed(**{f"model__layers__0__self_attn__{part}_proj__weight": torch.ones(8, 4) for part in "qkv"}),
        ("model.layers.0.self_attn.q_proj", "4 input columns", "2:8 needs at least 8", "2 more like it"),
    ),
    "untied twin": (
        tensors_changed(lm_head__weight=torch.zeros(pico.VOCABULARY, pico.HIDDEN, dtype=torch.bfloat16)),
        ("lm_head.weight", "tie_word_embeddings"),
    ),
    "a single file beside an index of others": (
        lambda folder: pico.write(folder, shards=2) and None,
        ("model.safetensors beside model.safetensors.index.json", "names other files", "delete whichever"),
    ),
    "several files, no index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "part.safetensors") and None,
        ("model.safetensors.index.json", "shards are missing"),
    ),
}


@pytest.mark.parametrize("fault", SOURCES)
def test_unusable_source(cli: Cli, source: Path, tmp_path: Path, fault: str) -> None:
    spoil, words = SOURCES[fault]
    spoil(source)
    refused(cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q"), tmp_path / "out", *words)


INDEX_FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing shard": (
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        ("1 of 3 shards", "model-00002-of-00003.safetensors"),
    ),
    "escaping path": (
        lambda folder: edit_index(folder, lambda names: names.update({f"{Q}.weight": "../secret.safetensors"})),
        ("outside the folder", "../secret.safetensors"),
    ),
    "absolute path": (
        lambda folder: edit_index(folder, lambda names: names.update({f"{Q}.weight": "/etc/passwd"})),
        ("outside the folder", "/etc/passwd"),
    ),
    "tensor in the wrong shard": (
        lambda folder: edit_index(folder, lambda names: names.update(ghost="model-00001-of-00003.safetensors")),
        ("ghost", "does not contain it"),
    ),
    "empty index": (broken("model.safetensors.index.json", "{}"), ("no weight_map",)),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_unusable_index(cli: Cli, tmp_path: Path, fault: str) -> None:
    source = pico.write(tmp_path / "source", shards=3)
    spoil, words = INDEX_FAULTS[fault]
    spoil(source)
    refused(cli("convert", *MAGNITUDE, source, tmp_path / "out"), tmp_path / "out", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pattern", "2_9"), ("unknown pattern", "did you mean 2:")),
        (("--pattern", "3_8"), ("unknown pattern '3:8'", "did you mean 2:8")),
        (("--scheme", "int88"), ("unknown scheme 'int88'", "did you mean int8")),
        (
            ("--scheme", "w4a17"),
            ("unknown scheme 'w4a17'", "did you mean w4a16", "int8, fp8, bf16, w4a16, w4a8, w8a16"),
        ),
        (("--method", "magnitud"), ("unknown method", "did you mean magnitude")),
        (("--layout", "slid"), ("unknown layout", "did you mean slide")),
        (("--scheme", "bf16", "--layout", "slide"), ("the slide layout is for int8 and fp8 weights", "--layout dense")),
        (("--method", "rtn"), ("hold 8 non-zeros, 2:8 allows 6", "model.layers.0.")),
        (("--device", "tpu"), ("unknown device 'tpu'",)),
        (("--device", "cuda:99"), ("CUDA devices", "--device cpu")),
        (("--recipe", "nowhere.yaml"), ("nowhere.yaml", "No such file")),
        (("--shard-gb", "0"), ("shard_gb", "positive")),
    ],
)
def test_unusable_words(
    cli: Cli, source: Path, tmp_path: Path, words: tuple[str, ...], message: tuple[str, ...]
) -> None:
    refused(cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q", *words), tmp_path / "out", *message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patern: 2:8", ("unknown field", "patern", "did you mean pattern")),
        ("rules: [{match: '*.q_proj', pattern: 2:6}]", ("q_proj: int8 2:6", "k_proj: int8 2:8", "must agree")),
        ("rules: [{match: '*.q_proj', keep: true}]", ("q_proj: kept", "fused")),
        ("rules: [{match: '*.nothing', keep: true}]", ("'*.nothing' matches no linear",)),
        ("rules: [{match: '*', keep: true, pattern: 2:6}]", ("keep copies the linear unchanged",)),
        ("rules: [{pattern: 2:6}]", ("rule 1", "no match")),
        ("[1, 2", ("not valid YAML",)),
        ("- a list", ("'field: value' lines",)),
    ],
)
def test_unusable_recipe(cli: Cli, source: Path, tmp_path: Path, text: str, message: tuple[str, ...]) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    outcome = cli("convert", source, tmp_path / "out", "--recipe", tmp_path / "recipe.yaml")
    refused(outcome, tmp_path / "out", *message)


def test_what_quantize_and_sparsify_cannot_take(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    w8a8 = pico.w8a8(tmp_path / "w8a8")
    refused(cli("quantize", w8a8, out), out, "already quantized to int8", "sparsify")
    refused(cli("convert", *MAGNITUDE, w8a8, out), out, "already quantized to int8")
    refused(cli("quantize", w8a8, out, "--scheme", "bf16"), out, "unknown scheme 'bf16'")
    asymmetric = pico.w8a8(tmp_path / "asymmetric", symmetric=False)
    refused(cli("sparsify", *MAGNITUDE, asymmetric, out), out, "group_0", "weights symmetric False")
    grouped = pico.w8a8(tmp_path / "grouped", strategy="group")
    refused(cli("sparsify", *MAGNITUDE, grouped, out), out, "weights strategy group")
    gptq = pico.write(tmp_path / "gptq", config={"quantization_config": {"quant_method": "gptq"}})
    refused(cli("sparsify", *MAGNITUDE, gptq, out), out, "quantized by 'gptq'", "BF16 model")


def test_zero_points_and_foreign_packing_are_refused(cli: Cli, tmp_path: Path) -> None:
    out, tensors = tmp_path / "out", pico.weights()
    tensors[f"{Q}.weight_zero_point"] = torch.zeros(64, 1, dtype=torch.int8)
    refused(cli("sparsify", *MAGNITUDE, pico.write(tmp_path / "zero", tensors), out), out, Q, "zero point")
    tensors = pico.weights()
    tensors[f"{Q}.weight_packed"] = torch.zeros(64, 8, dtype=torch.int32)
    refused(cli("sparsify", *MAGNITUDE, pico.write(tmp_path / "packed", tensors), out), out, Q, "packed")


def test_output_folder_that_is_not_empty(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    outcome = cli("convert", *MAGNITUDE, source, out)
    assert outcome.code == 2 and "not an empty folder" in outcome.err
    assert pico.files(out) == {"precious.txt": b"mine"}
    (out / "precious.txt").unlink()
    assert cli("convert", *MAGNITUDE, source, out).code == 0


def test_no_room_on_the_disk(cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    full = cli("convert", *MAGNITUDE, source, tmp_path / "out")
    refused(full, tmp_path / "out", "needs 0.06 GB", "0.00 GB are free", code=75)


def test_disk_that_fills_up_midway_can_be_resumed(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slideconvert.checkpoint.writer import WeightWriter

    real, calls = WeightWriter._put, 0

    def full_after_a_while(self: WeightWriter, data: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls > 40:  # in the second decoder layer
            raise OSError(28, "No space left on device")
        real(self, data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(WeightWriter, "_put", full_after_a_while)
        outcome = cli("convert", *MAGNITUDE, source, out, "-q")
    assert outcome.code == 75 and "the disk is full" in outcome.err and "--resume" in outcome.err
    assert len((out / ".slideconvert-partial" / "journal.jsonl").read_text().splitlines()) == 2
    assert cli("convert", *MAGNITUDE, source, out, "--resume").code == 0
    assert cli("verify", out, "--source", source).code == 0


def test_source_that_vanishes_during_a_conversion(
    cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slideconvert.convert import pipeline

    real = pipeline.convert_linear

    def vanish(*words: Any) -> Any:
        (source / "model.safetensors").unlink(missing_ok=True)
        return real(*words)

    monkeypatch.setattr(pipeline, "convert_linear", vanish)
    outcome = cli("convert", *MAGNITUDE, source, tmp_path / "out", "-q")
    refused(outcome, tmp_path / "out", "model.safetensors", "cannot be read", "did the file change")


def test_unreadable_state_of_an_unfinished_conversion(cli: Cli, source: Path, tmp_path: Path) -> None:
    staging = tmp_path / "out" / ".slideconvert-partial"
    staging.mkdir(parents=True)
    (staging / "state.json").write_text("{")
    outcome = cli("convert", *MAGNITUDE, source, tmp_path / "out", "--resume")
    assert outcome.code == 2 and "state.json" in outcome.err and "not valid JSON" in outcome.err


def test_no_permission_to_write(cli: Cli, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # root may write anywhere, so the refusal is simulated
    refused(
        cli("convert", *MAGNITUDE, source, tmp_path / "out"),
        tmp_path / "out",
        "no permission to write",
        "another folder",
    )


def test_missing_sources(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(cli("convert", *MAGNITUDE, tmp_path / "absent" / "folder", out), out, "no such folder")
    refused(cli("convert", *MAGNITUDE, source / "model.safetensors", out), out, "is a file")


def test_checkpoint_of_a_newer_format(cli: Cli, source: Path, tmp_path: Path) -> None:
    done, out = tmp_path / "done", tmp_path / "out"
    assert cli("convert", *MAGNITUDE, source, done).code == 0
    config = json.loads((done / "config.json").read_text())
    config["slidesparse_config"]["format_version"] = 2
    (done / "config.json").write_text(json.dumps(config))
    refused(cli("relayout", done, out, "--layout", "dense"), out, "format version 2", "upgrade slideconvert")
    del config["slidesparse_config"]
    (done / "config.json").write_text(json.dumps(config))
    refused(cli("relayout", done, out, "--layout", "dense"), out, "weight_packed", "slidesparse_config record")
