"""vLLM with our plugin, on the CPU: both layouts, against stock vLLM without it and against each other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.core.patterns import BlockPattern
from slideconvert.kernels.windows import slide_and_pack, unpack, unslide
from tests.helpers.demo import DEMO, DOWN_2_6, KEEP_FIRST, both_layouts, converted, text_windows
from tests.helpers.serving import edit_config
from tests.helpers.vllm_runner import (
    ONE_PROCESS,
    STOCK_INT8,
    TWO_RANKS,
    Job,
    Outcome,
    log_probabilities,
    run,
    run_layouts,
)

pytestmark = pytest.mark.vllm

INT8, FP8, KEPT = "torch.int8", "torch.float8_e4m3fn", ""
EAGER = {"dtype": "float32", "enforce_eager": True}
CLOSE = 1e-6
"""Of the largest output: sums of up to a thousand float32 products in another order, and two multiplications."""

LATE_FP8 = {"match": "model.layers.[2-9].*", "scheme": "fp8"}
MIXED: dict[str, Any] = {"scheme": "int8", "pattern": "2:8", "rules": [KEEP_FIRST, DOWN_2_6, LATE_FP8]}

MODELS = "SLIDECONVERT_MODELS"
"""Names a folder of models, as in tests/runtime/test_reference_models.py."""


def reference_models() -> list[Path]:
    """The demo model, and those Llamas and Qwens that there are."""
    found = [Path(os.environ.get(MODELS, "")) / name for name in ("llama", "qwen2")]
    return [DEMO, *(path for path in found if MODELS in os.environ and path.is_dir())]


def prompts(model: Path, length: int = 48) -> list[list[int]]:
    if model == DEMO:
        return text_windows(length, 2).tolist()
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    return torch.randint(3, size, (2, length), generator=torch.Generator().manual_seed(0)).tolist()


def linears(model: Path) -> dict[str, tuple[list[str], Any]]:
    """By the name of a linear of vLLM: the linears fused in it, and the record of the first, None for kept ones."""
    config = json.loads((model / "config.json").read_text())
    recorded, found = config["slidesparse_config"]["layers"], {}
    for layer in range(config["num_hidden_layers"]):
        for name, kinds in {
            "self_attn.qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "self_attn.o_proj": ["o_proj"],
            "mlp.gate_up_proj": ["gate_proj", "up_proj"],
            "mlp.down_proj": ["down_proj"],
        }.items():
            place = f"model.layers.{layer}.{name}"
            parts = [f"{place.rpartition('.')[0]}.{kind}" for kind in kinds]
            found[place] = (parts, recorded.get(parts[0]))
    return found


def code_dtypes(model: Path) -> dict[str, str]:
    words = {"int8": INT8, "fp8": FP8}
    return {name: words[record["scheme"]] if record else KEPT for name, (_, record) in linears(model).items()}


def assert_ours_ran(outcome: Outcome, model: Path, rank: int = 0, stock: tuple[str, ...] = (), ranks: int = 1) -> None:
    """Every recorded linear on our reference backend with slid codes [N, K'] of this rank, and with nothing else of
    the weight left; those that end in `stock` on vLLM's own kernels, in the dense layout as if we were not there; kept
    ones unquantized."""
    config = json.loads((model / "config.json").read_text())
    recorded, biases = config["slidesparse_config"]["layers"], config["model_type"] == "qwen2"
    for name, (parts, record) in linears(model).items():
        found = outcome.linears(rank)[name]
        if record is None:
            assert found["method"] == "UnquantizedLinearMethod", name
            continue
        left = name.endswith(stock)
        method = "CompressedTensors" if left and config["slidesparse_config"]["layout"] == "dense" else "SlideSparse"
        assert found["method"] == f"{method}LinearMethod", name
        if left:
            assert found["backend"] is None and "weight_packed" not in found["tensors"], name
            continue
        by_rows = name.endswith(("o_proj", "down_proj"))
        rows = sum(recorded[part]["shape"][0] for part in parts) // (1 if by_rows else ranks)
        columns = record["shape"][1] // (ranks if by_rows else 1)
        codes = ["torch.int8", [rows, BlockPattern.parse(record["pattern"]).slid_columns(columns)]]
        assert found["backend"] == "reference", name
        assert (found["tensors"].pop("bias", None) is not None) == (biases and "qkv" in name), name
        assert found["tensors"] == {"weight_packed": codes, "prepared_1": ["torch.float32", [rows]]}, name


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal to the bit if tolerance is 0, else to that share of the largest output of each linear."""
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        assert found[name].dtype == torch.float32 and found[name].shape == output.shape
        assert (found[name] - output).abs().max() <= tolerance * output.abs().max(), name


@STOCK_INT8
@pytest.mark.parametrize("source", reference_models(), ids=lambda path: path.name)
def test_layouts_agree_to_the_bit_and_with_stock_to_rounding(tmp_path: Path, source: Path) -> None:
    """INT8, FP8 and kept layers, ragged tails. Given the same inputs, every linear gives what stock vLLM gives."""
    checkpoints, ids = both_layouts(source, tmp_path, **MIXED), prompts(source)
    capture = code_dtypes(checkpoints["dense"])
    dense, slide, stock = run_layouts(checkpoints, ids, capture, tmp_path, engine=EAGER, environment=ONE_PROCESS)
    for outcome, checkpoint in ((dense, checkpoints["dense"]), (slide, checkpoints["slide"])):
        assert_ours_ran(outcome, checkpoint)
    assert slide.results["greedy"] == dense.results["greedy"] == stock.results["greedy"]
    assert slide.results["logprobs"] == dense.results["logprobs"]
    assert slide.results["reloaded"] == {key: slide.results[key] for key in slide.results["reloaded"]}
    assert_same(slide.outputs(), dense.outputs(), 0)
    assert_same(dense.outputs(), stock.outputs(), CLOSE)
    assert not stock.results["ranks"][0]["modules"]


def test_a_checkpoint_that_nothing_speeds_up_is_left_to_vllm(tmp_path: Path) -> None:
    """As on a CPU, where nothing of ours is faster: both layouts give what stock vLLM gives without us, to the bit."""
    checkpoints, ids = both_layouts(DEMO, tmp_path, **MIXED), prompts(DEMO)
    auto = {**ONE_PROCESS, "SLIDESPARSE_BACKEND": "auto"}
    stock = run(
        Job(str(checkpoints["dense"]), ids, stock=True, engine=EAGER, environment=ONE_PROCESS), tmp_path / "run-stock"
    )
    for layout, checkpoint in checkpoints.items():
        found = run(Job(str(checkpoint), ids, engine=EAGER, environment=auto), tmp_path / f"run-{layout}")
        assert_ours_ran(found, checkpoint, stock=tuple(linears(checkpoint)))
        assert found.results["ranks"][0]["hashed"] is None
        for kind in ("greedy", "logprobs"):
            assert found.results[kind] == stock.results[kind], (layout, kind)


def demo_with_biases(folder: Path) -> Path:
    """The demo model as a Qwen2, which has biases on q, k and v; drawn."""
    shutil.copytree(DEMO, folder)
    edit_config(folder, lambda config: config.update(model_type="qwen2", architectures=["Qwen2ForCausalLM"]))
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        bias = torch.randn(tensors[name].shape[0], generator=generator) / 4
        tensors[name.replace("weight", "bias")] = bias.bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def up_proj_unlike_gate_proj(folder: Path) -> None:
    """Layer 1's up_proj as 2:inf, beside a gate_proj that stays 2:8. Our converter makes no such checkpoint."""
    name = "model.layers.1.mlp.up_proj"
    edit_config(folder, lambda config: config["slidesparse_config"]["layers"][name].update(pattern="2:inf"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if f"{name}.weight_packed" in tensors:
        slid = unpack(tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_meta"])
        packed = slide_and_pack(unslide(slid, 128, 8), None)
        tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_meta"] = packed
    save_file(tensors, path, metadata={"format": "pt"})


@STOCK_INT8
def test_tensor_parallel_ranks_cut_windows_or_fall_back(tmp_path: Path) -> None:
    """With biases. K = 128 and 352 over two ranks are 64 and 176 columns: 2:16 starts rank 1 in the middle of a byte,
    2:8 does not; 2:6 and 2:10 cut groups and go to vLLM's kernels, INT8 and FP8, as fused linears that differ do."""
    rules = [
        {"match": "model.layers.[02].self_attn.o_proj", "pattern": "2:6"},
        {"match": "model.layers.[13].self_attn.o_proj", "pattern": "2:inf"},
        {"match": "model.layers.[02].mlp.down_proj", "pattern": "2:16"},
        {"match": "model.layers.3.mlp.*", "pattern": "2:10"},
        LATE_FP8,
    ]
    source, ids = demo_with_biases(tmp_path / "source"), prompts(DEMO)
    checkpoints = both_layouts(source, tmp_path, scheme="int8", pattern="2:8", rules=rules)
    for checkpoint in checkpoints.values():
        up_proj_unlike_gate_proj(checkpoint)
    capture, engine = code_dtypes(checkpoints["dense"]), {**EAGER, "tensor_parallel_size": 2}
    dense, slide, stock = run_layouts(checkpoints, ids, capture, tmp_path, engine=engine, environment=TWO_RANKS)
    fallen = (
        "layers.0.self_attn.o_proj",
        "layers.1.mlp.gate_up_proj",
        "layers.2.self_attn.o_proj",
        "layers.3.mlp.down_proj",
    )
    for outcome, checkpoint in ((dense, checkpoints["dense"]), (slide, checkpoints["slide"])):
        said = [line for line in outcome.said.splitlines() if "vLLM's dense kernels" in line]
        assert len(said) == 3, said  # once for each kind of layer, by one rank
        assert "model.layers.*.self_attn.o_proj" in said[0] and "2 ranks" in said[0] and "2:6" in said[0]
        assert "model.layers.*.mlp.gate_up_proj" in said[1] and "patterns 2:8, 2:inf" in said[1]
        assert "model.layers.*.mlp.down_proj" in said[2] and "K = 352" in said[2] and "2:10" in said[2]
        for rank in (0, 1):
            assert_ours_ran(outcome, checkpoint, rank, fallen, ranks=2)
    assert slide.results["greedy"] == dense.results["greedy"]
    assert slide.results["logprobs"] == dense.results["logprobs"]
    for rank in (0, 1):
        assert_same(slide.outputs(rank), dense.outputs(rank), 0)
        assert_same(dense.outputs(rank), stock.outputs(rank), CLOSE)


@pytest.mark.parametrize(
    ("words", "dtype", "compiled"),
    [
        ({"scheme": "int8", "pattern": "2:8"}, "bfloat16", True),
        ({"scheme": "fp8", "pattern": "2:10"}, "float16", False),
    ],
    ids=["int8, bfloat16, compiled", "fp8, float16"],
)
def test_served_compiled_and_in_half_precision(
    tmp_path: Path, words: dict[str, Any], dtype: str, compiled: bool
) -> None:
    """The slide layout, compiled in an engine of several processes (vLLM's default), and in float16; against our own
    model, and as far from it as that is from itself in this dtype (see test_vllm_dense.py)."""
    model, ids = converted(DEMO, tmp_path / "model", layout="slide", **words), prompts(DEMO)
    engine = {"dtype": dtype, "enforce_eager": not compiled}
    found = run(Job(str(model), ids, engine=engine, environment={} if compiled else ONE_PROCESS), tmp_path / "run")
    assert (found.results["ranks"][0]["pid"] != found.results["pid"]) == compiled
    assert ("saved AOT compiled function" in found.said) == compiled
    assert_ours_ran(found, model)
    chosen = found.results["ranks"][0]["hashed"]
    assert chosen.keys() == linears(model).keys()
    assert all(value.startswith("reference: slide ") for value in chosen.values())
    expected = log_probabilities(model, ids)
    noise = (log_probabilities(model, ids, getattr(torch, dtype)) - expected).abs().mean()
    assert (found.logprobs - expected).abs().mean() < 2 * noise


# ---- BitNet, which vLLM runs through transformers' own modules


def demo_as_bitnet(folder: Path) -> Path:
    """The demo model's weights as latent weights of a BitNet, norms before o_proj and down_proj and all."""
    shutil.copytree(DEMO, folder)
    words = {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2"}
    edit_config(folder, lambda config: config.update(words))
    tensors = load_file(folder / "model.safetensors")
    for layer in range(json.loads((folder / "config.json").read_text())["num_hidden_layers"]):
        for norm, read in (("self_attn.attn_sub_norm", "self_attn.o_proj"), ("mlp.ffn_sub_norm", "mlp.down_proj")):
            width = tensors[f"model.layers.{layer}.{read}.weight"].shape[1]
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.linspace(0.5, 1.5, width).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_bitnet_is_served_in_both_layouts(tmp_path: Path, scheme: str) -> None:
    """Both layouts to the bit on our backend; stock vLLM serves the dense one. Against our own loader and stock vLLM:
    within what rounding the activations changes at all, as in test_vllm_dense."""
    source, ids = demo_as_bitnet(tmp_path / "source"), prompts(DEMO)
    checkpoints = both_layouts(source, tmp_path, scheme=scheme, pattern="2:8")
    common: dict[str, Any] = {"engine": EAGER, "environment": ONE_PROCESS}
    dense, slide = (
        run(Job(str(checkpoints[layout]), ids, **common), tmp_path / f"run-{layout}") for layout in ("dense", "slide")
    )
    stock = run(Job(str(checkpoints["dense"]), ids, stock=True, **common), tmp_path / "run-stock")
    for outcome in (dense, slide):
        decoder = {name: found for name, found in outcome.linears().items() if ".layers." in name}
        assert len(decoder) == 4 * json.loads((source / "config.json").read_text())["num_hidden_layers"]
        assert {(found["method"], found["backend"]) for found in decoder.values()} == {
            ("SlideSparseLinearMethod", "reference")
        }
    assert slide.results["greedy"] == dense.results["greedy"]
    assert slide.results["logprobs"] == dense.results["logprobs"]
    expected, plain = (
        log_probabilities(checkpoints["dense"], ids, activations=kind) for kind in ("quantized", "float")
    )
    rounding = (plain - expected).abs().mean()
    assert (dense.logprobs - expected).abs().mean() < rounding
    assert (stock.logprobs - expected).abs().mean() < rounding


def test_bitnet_is_not_divided_among_ranks(tmp_path: Path) -> None:
    """transformers has no plan for it: stock vLLM would divide half of it, and say nothing."""
    model = both_layouts(demo_as_bitnet(tmp_path / "source"), tmp_path, scheme="int8", pattern="2:8")["slide"]
    engine = {**EAGER, "tensor_parallel_size": 2}
    outcome = run(Job(str(model), prompts(DEMO), engine=engine, environment=TWO_RANKS), tmp_path / "run")
    assert outcome.told is None and "BitNet over 2 tensor-parallel ranks" in outcome.said
