"""Which checkpoints our vLLM plugin takes, and which it refuses and why; before and while their weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import pico
from tests.helpers.demo import both_layouts
from tests.helpers.serving import edit_config
from tests.helpers.vllm_runner import PLUGIN, start

pytestmark = pytest.mark.vllm


def damage(folder: Path, kind: str, change: Any) -> None:
    """Change one tensor of layer 1's down_proj in the file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.down_proj.{kind}"
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def same_positions(meta: Tensor) -> Tensor:
    meta = meta.clone()
    meta[3, 7] = 0
    return meta


def described(rows: int, columns: int) -> Any:
    """Other shapes in the record of layer 1's gate_proj and up_proj, which vLLM fuses."""

    def change(config: dict[str, Any]) -> None:
        for kind in ("gate_proj", "up_proj"):
            config["slidesparse_config"]["layers"][f"model.layers.1.mlp.{kind}"]["shape"] = [rows, columns]

    return change


def unrecorded(config: dict[str, Any]) -> None:
    del config["slidesparse_config"]["layers"]["model.layers.1.mlp.up_proj"]


def reworded(config: dict[str, Any]) -> None:
    for kind in ("gate_proj", "up_proj"):
        config["slidesparse_config"]["layers"][f"model.layers.1.mlp.{kind}"]["scheme"] = "fp8"


DAMAGE: dict[str, tuple[str, Any, Any, str]] = {
    "metadata": (
        "slide",
        ("weight_meta", same_positions),
        None,
        "model.layers.1.mlp.down_proj: row 3, window 14: positions",
    ),
    "shape": (
        "slide",
        ("weight_packed", lambda values: values[:, :-16]),
        None,
        "model.layers.1.mlp.down_proj.weight_packed: the checkpoint has torch.int8 [64, 64], its record in config.json "
        "needs torch.int8 [64, 80]",
    ),
    "dtype": (
        "dense",
        ("weight", lambda codes: codes.bfloat16()),
        None,
        "model.layers.1.mlp.down_proj.weight: the checkpoint has torch.bfloat16 [64, 88], its record",
    ),
    "pattern": (
        "dense",
        ("weight", lambda codes: codes.fill_(1)),
        None,
        "model.layers.1.mlp.down_proj: row 0, columns 0 … 7 hold 8 non-zeros, 2:8 allows 6",
    ),
    "columns": (
        "slide",
        None,
        described(88, 72),
        "model.layers.1.mlp.gate_up_proj: its record says [88, 72], the model of config.json needs 64 columns",
    ),
    "rows": (
        "dense",
        None,
        described(176, 64),
        "model.layers.1.mlp.gate_up_proj: its record says [176, 64], the model of config.json needs 64 columns",
    ),
    "record": (
        "slide",
        None,
        unrecorded,
        "model.layers.1.mlp.gate_up_proj: quantization_config says int8, slidesparse_config has 1 of model",
    ),
    "scheme": (
        "slide",
        None,
        reworded,
        "model.layers.1.mlp.gate_up_proj: quantization_config says int8, slidesparse_config says fp8",
    ),
}
"""By name: layout, what is done to a tensor of layer 1's down_proj, what is done to config.json, what vLLM must say."""


def test_damaged_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a backend of ours is to run them."""
    monkeypatch.setenv("SLIDESPARSE_BACKEND", "reference")
    checkpoints = both_layouts(pico.write(tmp_path / "source"), tmp_path, scheme="int8", pattern="2:8")
    lines = []
    for name, (layout, tensor, config, _) in DAMAGE.items():
        folder = tmp_path / name
        shutil.copytree(checkpoints[layout], folder)
        if tensor:
            damage(folder, *tensor)
        if config:
            edit_config(folder, config)
        engine = "--dtype float32 --enforce-eager --max-model-len 8 --skip-tokenizer-init"
        lines.append(["--model", str(folder), *engine.split()])
    outcome = start("vllm_configs.py", {"lines": lines, "load": True}, tmp_path / "run", PLUGIN)
    assert outcome.told is not None, outcome.said
    for (name, (*_, said)), found in zip(DAMAGE.items(), outcome.told, strict=True):
        assert found["error"].startswith(f"InputError: {said}"), (name, found)
        assert found["error"].endswith(("again)", "another checkpoint)")), (name, found)


def test_claims_ours_alone_and_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    """Before any engine starts; from config.json and from --hf-overrides alike."""
    source = pico.write(tmp_path / "source")
    checkpoints = both_layouts(source, tmp_path, scheme="int8", pattern="2:8")
    foreign = pico.w8a8(tmp_path / "foreign")

    def changed(name: str, change: Any, layout: str = "slide") -> Path:
        copy = tmp_path / name
        shutil.copytree(checkpoints[layout], copy)
        edit_config(copy, change)
        return copy

    newer = changed("newer", lambda config: config["slidesparse_config"].update(format_version=99))
    bare = changed("bare", lambda config: config.pop("slidesparse_config"))
    stock = changed("stock", lambda config: config.pop("slidesparse_config"), "dense")
    set_so = changed("set", lambda config: config.update(slidesparse_runtime={"backend": "reference"}))
    tampered = changed("tampered", lambda config: None)
    (tampered / "kernels" / "windows.py").write_text("raise SystemExit")

    def overrides(backend: str) -> list[str]:
        return ["--hf-overrides", json.dumps({"slidesparse_runtime": {"backend": backend}})]

    lines: dict[str, tuple[list[Any], Any]] = {
        "plain": ([source], (None, None)),
        "foreign": ([foreign], ("compressed-tensors", None)),
        "dense without record": ([stock], ("compressed-tensors", None)),
        "slide": ([checkpoints["slide"]], ("slidesparse", "auto")),
        "dense": ([checkpoints["dense"]], ("slidesparse", "auto")),
        "named": ([checkpoints["dense"], "--quantization", "compressed-tensors"], ("slidesparse", "auto")),
        "set in config.json": ([set_so], ("slidesparse", "reference")),
        "set by override": ([checkpoints["slide"], *overrides("reference")], ("slidesparse", "reference")),
        "unknown backend": (
            [checkpoints["slide"], *overrides("nonsense")],
            "asks for backend 'nonsense' (use one of auto",
        ),
        "newer": ([newer], "format version 99, this code reads up to 1 (upgrade slideconvert)"),
        "no record": ([bare], "weights in the slide layout, but config.json has no slidesparse_config"),
        "tampered": ([tampered], "kernels/windows.py: sha256 differs from the record's"),
        "other method": ([checkpoints["slide"], "--quantization", "fp8"], "does not match the quantization method"),
    }
    commands = [["--model", *map(str, words), "--dtype", "float32"] for words, _ in lines.values()]
    outcome = start("vllm_configs.py", {"lines": commands, "load": False}, tmp_path / "run", PLUGIN)
    assert outcome.told is not None, outcome.said
    for (name, (words, expected)), found in zip(lines.items(), outcome.told, strict=True):
        if isinstance(expected, str):
            assert expected in found["error"], name
            assert name == "other method" or f"InputError: {words[0]}: " in found["error"], name
        else:
            assert (found.get("quantization"), found.get("backend")) == expected, (name, found)
    imported = [found["imported"] for found in outcome.told]
    assert imported == [False] * 3 + [True] * (len(lines) - 3)  # nothing of ours but the claim, until it is needed
