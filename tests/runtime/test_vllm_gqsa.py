"""vLLM with our plugin, on the CPU: linears with scales for groups of columns, in both layouts and beside INT8."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.bench.serving.random_model import halve
from slideconvert.checkpoint.reader import Checkpoint
from slideconvert.models.load import load_model
from tests.helpers import pico
from tests.helpers.demo import DEMO, KEEP_FIRST, converted
from tests.helpers.serving import edit_config, grouped
from tests.helpers.vllm_runner import (
    ONE_PROCESS,
    PLUGIN,
    STOCK,
    STOCK_INT8,
    TWO_RANKS,
    Job,
    Outcome,
    log_probabilities,
    run,
    run_layouts,
    start,
)
from tests.runtime.test_vllm_plugin import INT8, linears, prompts

pytestmark = pytest.mark.vllm

BFLOAT16 = {"dtype": "bfloat16", "enforce_eager": True}
FLOAT32 = {"dtype": "float32", "enforce_eager": True}
ROUNDING = 2**-7
"""What bfloat16 may round off, 2**-8 of a number, twice: of a weight, and of what comes out."""

HALF: dict[str, Any] = {"scheme": "w4a16", "group_size": "16", "pattern": "1x16:50%", "method": "rtn"}
UNPRUNED = {"scheme": "w4a8", "group_size": "16", "symmetric": "true", "pattern": "2:inf"}
MIXED: dict[str, Any] = {
    "scheme": "int8",
    "pattern": "2:8",
    "rules": [
        KEEP_FIRST,
        {"match": "model.layers.2.*", **HALF},
        {"match": "model.layers.3.*", **UNPRUNED},
        {"match": "*.down_proj", **HALF, "scheme": "w4a8"},
    ],
}
EIGHT = {"match": "model.layers.0.*", **HALF, "scheme": "w8a16", "symmetric": "true"}


def halved(folder: Path, size: int = 16) -> Path:
    """The demo model with the weaker half of all groups of each linear zero; rows keep more or fewer."""
    halve(DEMO, folder, size)
    return folder


def layouts(source: Path, folder: Path, **words: Any) -> dict[str, Path]:
    """The same conversion twice, in folders named after the layouts."""
    return {layout: converted(source, folder / layout, layout=layout, **words) for layout in ("gqs", "dense")}


def input_dtypes(model: Path) -> dict[str, str]:
    """By linear of vLLM, the dtype of its activations' codes, "" for floats."""
    eight = ("int8", "w4a8")
    return {name: INT8 if record and record["scheme"] in eight else "" for name, (_, record) in linears(model).items()}


def assert_ours_ran(outcome: Outcome, model: Path, rank: int = 0) -> None:
    """Every recorded linear on the reference backend of its kind, with nothing of the checkpoint's tensors left."""
    for name, (_, record) in linears(model).items():
        found = outcome.linears(rank)[name]
        if record is None:
            assert found["method"] == "UnquantizedLinearMethod", name
            continue
        by_groups = "group_size" in record
        assert found["method"] == "SlideSparseLinearMethod", name
        assert found["backend"] == "reference", name
        assert found["tensors"].keys() == ({"weight_packed"} if by_groups else {"weight_packed", "prepared_1"}), name


def fused(model: Path) -> dict[str, Tensor]:
    """By linear of vLLM, its weight [N, K] in float64, as our own loader reads it."""
    found = load_model(Checkpoint.open(model), activations="float")
    parts = {name: [found.get_submodule(part) for part in parts] for name, (parts, _) in linears(model).items()}
    return {name: torch.cat([part.weight for part in these]).double() for name, these in parts.items()}  # type: ignore[misc]


def assert_within_rounding(outcome: Outcome, inputs: Path, model: Path) -> None:
    """Every linear gives x @ W.T, but for bfloat16's rounding of each weight and each result; sums are float32.

    By so much, of what is summed up: the magnitudes. The codes of eight-bit activations lose nothing (see `snapped`).
    """
    given, weights = load_file(inputs / "inputs0.safetensors"), fused(model)
    for name, (_, record) in linears(model).items():
        if record is None or record["scheme"] == "int8":
            continue
        x, found = given[name].double(), outcome.outputs()[name].double()
        magnitudes = x.abs() @ weights[name].abs().T
        assert ((found - x @ weights[name].T).abs() <= 1.01 * ROUNDING * magnitudes).all(), name


def assert_equal(one: Outcome, other: Outcome, rank: int = 0) -> None:
    assert one.results["greedy"] == other.results["greedy"]
    assert one.results["logprobs"] == other.results["logprobs"]
    first, second = one.outputs(rank), other.outputs(rank)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@STOCK_INT8
def test_layouts_agree_to_the_bit_and_with_stock_to_rounding(tmp_path: Path) -> None:
    """Absent groups, W4A8, INT8 and kept layers. Given the same inputs, every linear gives what stock vLLM gives for
    the dense layout; and everything is loaded a second time."""
    checkpoints, ids = layouts(halved(tmp_path / "source"), tmp_path, **MIXED), prompts(DEMO)
    inputs = tmp_path / "run-dense"
    capture = input_dtypes(checkpoints["dense"])
    dense, gqs, stock = run_layouts(checkpoints, ids, capture, tmp_path, engine=BFLOAT16, environment=ONE_PROCESS)
    for outcome, checkpoint in ((dense, checkpoints["dense"]), (gqs, checkpoints["gqs"])):
        assert_ours_ran(outcome, checkpoint)
        assert_within_rounding(outcome, inputs, checkpoint)
    assert_equal(gqs, dense)
    assert gqs.results["reloaded"] == {key: gqs.results[key] for key in gqs.results["reloaded"]}
    assert_within_rounding(stock, inputs, checkpoints["dense"])
    assert not stock.results["ranks"][0]["modules"]


def test_served_as_our_own_loader_computes(tmp_path: Path) -> None:
    """In float32: vLLM's attention and norms add up in another order, nothing else differs."""
    model, ids = converted(halved(tmp_path / "source"), tmp_path / "model", layout="gqs", **HALF), prompts(DEMO)
    found = run(Job(str(model), ids, engine=FLOAT32, environment=ONE_PROCESS), tmp_path / "run")
    assert (found.logprobs - log_probabilities(model, ids)).abs().max() < 1e-3


def test_tensor_parallel_ranks_hold_rows_or_groups(tmp_path: Path) -> None:
    """K = 352 over two ranks are 176 columns, eleven groups; ranks hold unlike numbers of groups. With W8A16."""
    words = {**MIXED, "rules": [EIGHT, *MIXED["rules"]]}
    checkpoints, ids = layouts(halved(tmp_path / "source"), tmp_path, **words), prompts(DEMO)
    common: dict[str, Any] = {"engine": {**FLOAT32, "tensor_parallel_size": 2}, "environment": TWO_RANKS}
    capture = input_dtypes(checkpoints["dense"])
    dense = run(Job(str(checkpoints["dense"]), ids, capture=capture, **common), tmp_path / "run-dense")
    inputs = str(tmp_path / "run-dense")
    gqs = run(Job(str(checkpoints["gqs"]), ids, inputs=inputs, **common), tmp_path / "run-gqs")
    held = [gqs.linears(rank)["model.layers.2.mlp.down_proj"]["tensors"]["weight_packed"] for rank in (0, 1)]
    assert held[0] != held[1]
    weights, whole = fused(checkpoints["gqs"]), linears(checkpoints["gqs"])
    for rank in (0, 1):
        assert_ours_ran(dense, checkpoints["dense"], rank)
        assert_ours_ran(gqs, checkpoints["gqs"], rank)
        assert_equal(gqs, dense, rank)
        given, found = load_file(tmp_path / "run-dense" / f"inputs{rank}.safetensors"), gqs.outputs(rank)
        for name, weight in weights.items():
            parts, record = whole[name]
            if "group_size" not in (record or {}):
                continue
            if name.endswith(("o_proj", "down_proj")):
                own = weight.chunk(2, 1)[rank]
            else:
                rows = [layers_of(checkpoints["gqs"])[part]["shape"][0] for part in parts]
                own = torch.cat([part.chunk(2)[rank] for part in weight.split(rows)])
            exact = given[name].double() @ own.T
            magnitudes = given[name].double().abs() @ own.abs().T
            assert ((found[name] - exact).abs() <= 1e-6 * magnitudes).all(), name


def layers_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())["slidesparse_config"]["layers"]


def test_ranks_that_would_cut_groups_are_refused(tmp_path: Path) -> None:
    words = {"scheme": "w4a16", "group_size": "32", "pattern": "2:inf"}
    model = converted(DEMO, tmp_path / "model", **words)
    engine = {**BFLOAT16, "tensor_parallel_size": 2}
    outcome = run(Job(str(model), prompts(DEMO), engine=engine, environment=TWO_RANKS), tmp_path / "run")
    assert outcome.told is None
    assert (
        "model.layers.0.mlp.down_proj: tensor parallelism over 2 ranks cuts its K = 352 columns into 176, no multiple "
        "of its group size 32 (use fewer ranks (--tensor-parallel-size), or convert this layer in groups of 4, 8, 16)"
    ) in outcome.said


def test_served_compiled(tmp_path: Path) -> None:
    """In an engine of several processes (vLLM's default), against our own model in bfloat16: as far from it as that is
    from itself in float32 (see test_vllm_dense.py)."""
    model, ids = converted(halved(tmp_path / "source"), tmp_path / "model", layout="gqs", **MIXED), prompts(DEMO)
    found = run(Job(str(model), ids, engine={"dtype": "bfloat16"}), tmp_path / "run")
    assert found.results["ranks"][0]["pid"] != found.results["pid"]
    assert "saved AOT compiled function" in found.said
    assert_ours_ran(found, model)
    chosen = found.results["ranks"][0]["hashed"]
    kept = sum(layers_of(model)[f"model.layers.2.self_attn.{kind}_proj"]["kept_groups"] for kind in "qkv")
    assert re.fullmatch(rf"reference: group \d+ 128 16 4 {kept} .*", chosen["model.layers.2.self_attn.qkv_proj"])
    expected = log_probabilities(model, ids)
    noise = (log_probabilities(model, ids, torch.bfloat16) - expected).abs().mean()
    assert (found.logprobs - expected).abs().mean() < 2 * noise


# ---- what is refused, and what stock vLLM makes of it

DOWN = "model.layers.1.mlp.down_proj"


def damaged(kind: str, change: Any) -> Any:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{DOWN}.{kind}"] = change(tensors[f"{DOWN}.{kind}"]).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def dropped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_groups"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def entry_with(kinds: str, **words: Any) -> Any:
    def spoil(folder: Path) -> None:
        for kind in kinds.split():
            edit_config(folder, lambda config, kind=kind: layer(config, kind).update(words))  # type: ignore[misc]

    def layer(config: Any, kind: str) -> Any:
        return config["slidesparse_config"]["layers"][f"model.layers.1.mlp.{kind}"]

    return spoil


def falls(tensor: Tensor) -> Tensor:
    tensor[3] = 99
    return tensor


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "rows that fall": ("gqs", damaged("weight_row_index", falls), f"{DOWN}: 64x88 W4A16 g8"),
    "too few scales": (
        "gqs",
        damaged("weight_scale", lambda scale: scale[:-8]),
        f"{DOWN}.weight_scale: the checkpoint has torch.bfloat16 [344], its record in config.json needs torch.bfloat16 "
        "[352]",
    ),
    "scales of another dtype": (
        "dense",
        damaged("weight_scale", lambda scale: scale.float()),
        f"{DOWN}.weight_scale: the checkpoint has torch.float32 [64, 11], its record",
    ),
    "more groups than the record says": (
        "dense",
        entry_with("down_proj", kept_groups=344),
        f"{DOWN}: 64x88 W4A16 g8 asymmetric S0.0%: 352 groups are not zero, 344 may be",
    ),
    "a tensor that is not there": (
        "gqs",
        dropped,
        "model.layers.1.mlp.gate_up_proj: the checkpoint has no model.layers.1.mlp.up_proj.weight_groups",
    ),
    "other numbers": (
        "gqs",
        entry_with("gate_proj up_proj", scheme="w4a8"),
        "model.layers.1.mlp.gate_up_proj: quantization_config says w4a16 in asymmetric groups of 8, "
        "slidesparse_config says w4a8 in asymmetric groups of 8",
    ),
    "another shape": (
        "dense",
        entry_with("gate_proj up_proj", shape=[88, 72], kept_groups=396),
        "model.layers.1.mlp.gate_up_proj: its record says [88, 72], the model of config.json needs 64 columns",
    ),
    "a backend for GPUs": (
        "gqs",
        lambda folder: edit_config(folder, lambda c: c.update(slidesparse_runtime={"backend": "group_gemm"})),
        "model.layers.0.self_attn.qkv_proj: backend group_gemm cannot run 128x64 W4A16 g8",
    ),
}
ENGINE = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "8", "--skip-tokenizer-init"]


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    checkpoints = {layout: grouped(tmp_path / layout, layout=layout) for layout in ("gqs", "dense")}
    lines = []
    for number, (layout, spoil, _) in enumerate(DAMAGE.values()):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoints[layout], folder)
        spoil(folder)
        lines.append(["--model", str(folder), *ENGINE])
    outcome = start("vllm_configs.py", {"lines": lines, "load": True}, tmp_path / "run", PLUGIN)
    assert outcome.told is not None, outcome.said
    for (name, (*_, said)), found in zip(DAMAGE.items(), outcome.told, strict=True):
        assert found["error"].startswith(f"InputError: {said}"), (name, found)
        assert found["error"].endswith((" again)", "another checkpoint)", "to auto)")), (name, found)


def test_gqs_is_ours_with_or_without_a_record(tmp_path: Path) -> None:
    gqs, mixed = grouped(tmp_path / "gqs"), grouped(tmp_path / "mixed", "mixed", "gqs")
    bare = tmp_path / "bare"
    shutil.copytree(gqs, bare)
    edit_config(bare, lambda config: config.pop("slidesparse_config"))

    def asked(model: Path, backend: str) -> list[str]:
        words = ["--hf-overrides", json.dumps({"slidesparse_runtime": {"backend": backend}})]
        return ["--model", str(model), "--dtype", "float32", *words]

    lines = [asked(gqs, "group_gemm"), asked(mixed, "cusparselt"), asked(gqs, "cusparselt"), asked(bare, "auto")]
    outcome = start("vllm_configs.py", {"lines": lines, "load": False}, tmp_path / "run", PLUGIN)
    assert outcome.told is not None, outcome.said
    good, both, other, unrecorded = outcome.told
    assert (good["quantization"], good["backend"]) == ("slidesparse", "group_gemm")
    assert (both["quantization"], both["backend"]) == ("slidesparse", "cusparselt")
    assert "asks for backend 'cusparselt' (use one of auto, both, group_gemm, reference)" in other["error"]
    assert "weights in the gqs layout, but config.json has no slidesparse_config" in unrecorded["error"]


def test_stock_refuses_gqs_and_takes_of_dense_what_its_kernels_do(tmp_path: Path) -> None:
    """vLLM 0.32 on a CPU: 4 bits in any groups, with or without zero points, not 8 bits, and never the gqs layout."""
    pico_like = pico.write(tmp_path / "source", wide(), {"intermediate_size": 128, "num_hidden_layers": 1})
    lines, fits = [], []
    for scheme in ("w4a16", "w4a8", "w8a16"):
        for size, symmetric in ((16, "true"), (16, "false"), (64, "false")):
            words = {"scheme": scheme, "group_size": str(size), "symmetric": symmetric, "pattern": "2:inf"}
            model = converted(pico_like, tmp_path / f"{scheme}-{size}-{symmetric}", **words)
            lines.append(["--model", str(model), *ENGINE])
            fits.append(scheme != "w8a16")
    lines.append(["--model", str(grouped(tmp_path / "gqs")), *ENGINE])
    bfloat16 = [[("bfloat16" if word == "float32" else word) for word in line] for line in lines]
    outcome = start("vllm_configs.py", {"lines": bfloat16, "load": True}, tmp_path / "run", STOCK)
    assert outcome.told is not None, outcome.said
    *dense, gqs = outcome.told
    for line, fit, found in zip(lines[:-1], fits, dense, strict=True):
        if fit:
            assert found["quantization"] == "compressed-tensors" and "error" not in found, (line, found)
        else:
            assert "Failed to find a kernel" in found["error"], (line, found)
    assert gqs["error"].startswith("NotImplementedError: No compressed-tensors compatible scheme was found")
    assert "gqs-packed" in gqs["error"]


def wide() -> dict[str, Tensor]:
    """One layer of the pico model, its inner size 128: vLLM's kernel for CPUs wants multiples of 32."""
    tensors = pico.weights(layers=1)
    for name in ("gate_proj", "up_proj", "down_proj"):
        at = f"model.layers.0.mlp.{name}.weight"
        shape = (pico.HIDDEN, 128) if name == "down_proj" else (128, pico.HIDDEN)
        tensors[at] = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).mul_(0.05).bfloat16()
    return tensors
