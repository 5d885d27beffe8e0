"""What transformers would load as garbage, with a warning at most: refused, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from tests.helpers import pico
from tests.helpers.serving import LAYOUTS, checkpoint, edit_config

UP = "model.layers.1.mlp.up_proj"
Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def refused(folder: Path, *words: str, **arguments: Any) -> None:
    """ValueError of one line that names the folder and says these words."""
    with pytest.raises(ValueError) as caught:
        AutoModelForCausalLM.from_pretrained(folder, **arguments)
    said = str(caught.value)
    assert "\n" not in said and str(folder) in said and said.endswith(")"), said
    assert not [word for word in words if word not in said], said


def layers(config: Config) -> Any:
    return config["slidesparse_config"]["layers"]


CONFIGS: dict[str, tuple[Callable[[Config], Any], tuple[str, ...]]] = {
    "a newer format": (
        lambda config: config["slidesparse_config"].update(format_version=2, layers={"unheard of": 1}),
        ("format version 2", "up to 1", "upgrade slideconvert"),
    ),
    "no record": (lambda config: config.pop("slidesparse_config"), ("slide layout", "no slidesparse_config")),
    "a record that is none": (lambda config: config.update(slidesparse_config=[]), ("unreadable slidesparse_config",)),
    "a record without layers": (lambda config: config["slidesparse_config"].pop("layers"), ("unreadable", "layers")),
    "a version that is no number": (
        lambda config: config["slidesparse_config"].update(format_version="new"),
        ("unreadable", "new"),
    ),
    "a shape that is none": (lambda config: layers(config)[UP].update(shape=[88]), ("unreadable",)),
    "an impossible pattern": (lambda config: layers(config)[UP].update(pattern="2:7"), ("unreadable", "2:7")),
    "another pattern": (
        lambda config: layers(config)[UP].update(pattern="2:4"),
        (f"{UP}.weight_meta: U8 [88, 12]", "88x64 int8 2:4", "[88, 8]", "convert the model again"),
    ),
    "an unknown scheme": (lambda config: layers(config)[UP].update(scheme="int4"), (UP, "'int4'")),
    "another scheme": (
        lambda config: layers(config)[UP].update(scheme="fp8"),
        (f"{UP}.weight_packed: I8 [88, 48]", "needs F8_E4M3"),
    ),
    "a scheme that is none": (
        lambda config: layers(config)[UP].update(scheme="bf16"),
        (f"tensor {UP}.weight is missing",),
    ),
    "a layout that is not the format's": (
        lambda config: config["slidesparse_config"].update(layout="dense"),
        ("layout 'dense'", "slide-packed"),
    ),
    "the record's shape is not the model's": (
        lambda config: layers(config)[UP].update(shape=[88, 128]),
        (f"{UP} [88, 128]", "[88, 64]"),
    ),
    "a linear the model lacks": (
        lambda config: layers(config).update({"model.layers.9.mlp.up_proj": layers(config)[UP]}),
        ("model.layers.9.mlp.up_proj [88, 64]", "no such linear"),
    ),
    "a module that is no linear": (
        lambda config: layers(config).update({"model.norm": layers(config)[UP]}),
        ("model.norm [88, 64]", "no such linear"),
    ),
    "a linear the record lacks": (
        lambda config: layers(config).pop(UP),
        (f"tensor {UP}.weight is missing",),
    ),
    "unknown backend": (
        lambda config: config.update(slidesparse_runtime={"backend": "fastest"}),
        ("backend 'fastest'", "use one of auto, ", "reference"),
    ),
    "a backend for other machines": (
        lambda config: config.update(slidesparse_runtime={"backend": "cusparselt"}),
        (
            "model.layers.0.self_attn.q_proj",
            "backend cusparselt cannot run",
            'set slidesparse_runtime to {"backend": "auto"}',
        ),
    ),
    "unknown setting": (
        lambda config: config.update(slidesparse_runtime={"Backend": "auto"}),
        ("unknown key 'Backend'", "known: backend"),
    ),
    "settings that are none": (lambda config: config.update(slidesparse_runtime="reference"), ("an object",)),
    "a changed hash": (
        lambda config: config["slidesparse_config"]["kernels"].update({"kernels/linear.py": "0" * 64}),
        ("kernels/linear.py: sha256 differs from the record's 000000000000", "changed", "get the checkpoint again"),
    ),
    "a hash of a file elsewhere": (
        lambda config: config["slidesparse_config"]["kernels"].update({"kernels/../../x.py": "0" * 64}),
        ("kernels/../../x.py", "no place"),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(tmp_path: Path, case: str) -> None:
    spoil, words = CONFIGS[case]
    out = checkpoint(tmp_path)
    edit_config(out, spoil)
    refused(out, *words)


@pytest.mark.parametrize("case", ["a linear the record lacks", "a newer format", "a linear the model lacks"])
def test_config_of_the_dense_layout(tmp_path: Path, case: str) -> None:
    """Where stock transformers could load the checkpoint, and would, if we looked away."""
    spoil, words = CONFIGS[case]
    out = checkpoint(tmp_path, layout="dense")
    edit_config(out, spoil)
    if case == "a linear the record lacks":
        words = (f"{UP}.weight: I8 [88, 64]", "does not name")
    refused(out, *words)


def double(tensors: Tensors) -> None:
    """Two windows of group 0 hold column 2: the first one's lane 2 and the second one's lane 0."""
    tensors[f"{UP}.weight_packed"][5, :4] = 1
    tensors[f"{UP}.weight_meta"][5, 0] = (1 | 2 << 2) | (0 | 1 << 2) << 4


def repeat(tensors: Tensors) -> None:
    """The two positions of a window are the same."""
    tensors[f"{UP}.weight_meta"][7, 3] = 0b01_01_11_10


TENSORS: dict[str, tuple[str, Callable[[Tensors], Any], tuple[str, ...]]] = {
    "no codes": ("slide", lambda t: t.pop(f"{UP}.weight_packed"), (f"{UP}.weight_packed is missing",)),
    "no metadata": ("slide", lambda t: t.pop(f"{UP}.weight_meta"), (f"{UP}.weight_meta is missing",)),
    "no scale": ("dense", lambda t: t.pop(f"{UP}.weight_scale"), (f"{UP}.weight_scale is missing",)),
    "no norm": ("slide", lambda t: t.pop("model.norm.weight"), ("model.norm.weight is missing",)),
    "no bias": (
        "dense",
        lambda t: t.pop("model.layers.1.self_attn.q_proj.bias"),
        ("model.layers.1.self_attn.q_proj.bias is missing",),
    ),
    "a bias the model lacks": (
        "dense",
        lambda t: t.update({f"{UP}.bias": torch.zeros(88)}),
        (f"{UP}.bias: F32 [88]", "no place in a dense 88x64 int8 2:8"),
    ),
    "a scale per tensor": (
        "slide",
        lambda t: t.update({f"{UP}.weight_scale": torch.ones(1, 1)}),
        (f"{UP}.weight_scale: F32 [1, 1]", "needs F32 [88, 1]"),
    ),
    "too few rows": (
        "dense",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:-1].clone()}),
        (f"{UP}.weight: I8 [87, 64]", "needs I8 [88, 64]"),
    ),
    "floats for codes": (
        "dense",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].bfloat16()}),
        (f"{UP}.weight: BF16 [88, 64]", "needs I8"),
    ),
    "codes of a kept linear": (
        "dense",
        lambda t: t.update({"lm_head.weight": torch.zeros(96, 64, dtype=torch.int8)}),
        ("lm_head.weight: I8 [96, 64]", "does not name"),
    ),
    "a column in two windows": ("slide", double, (UP, "two windows hold the same input column")),
    "a position twice": ("slide", repeat, (UP, "row 7, window 7", "not ascending")),
    "more weights than the pattern leaves": (
        "dense",
        lambda t: t[f"{UP}.weight"].fill_(1),
        (UP, "columns 0 … 7 hold 8 non-zeros"),
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(tmp_path: Path, case: str) -> None:
    layout, spoil, words = TENSORS[case]
    out = checkpoint(tmp_path, layout=layout, biases="bias is missing" in words[0])
    tensors = pico.read(out)
    spoil(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    refused(out, *words)


FILES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "changed kernel": (
        lambda out: (out / "kernels/windows.py").write_text("WINDOW = 4\n"),
        ("kernels/windows.py: sha256 differs", "changed after conversion"),
    ),
    "changed text": (lambda out: (out / "kernels/README.md").write_text(""), ("kernels/README.md: sha256",)),
    "missing kernel": (
        lambda out: (out / "kernels/quantize/reference.py").unlink(),
        ("kernels/quantize/reference.py: file is missing",),
    ),
    "a kernel more": (
        lambda out: (out / "kernels/quantize/faster.py").write_text(""),
        ("kernels/quantize/faster.py: code that the record does not list",),
    ),
    "a source to be compiled": (
        lambda out: (out / "kernels/quantize/kernel.cu").write_text(""),
        ("kernels/quantize/kernel.cu: code that the record does not list",),
    ),
    "changed model file": (
        lambda out: (out / "modeling_slidesparse.py").write_text(""),
        ("modeling_slidesparse.py: sha256 differs",),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", FILES)
def test_bundled_code(tmp_path: Path, case: str, layout: str) -> None:
    spoil, words = FILES[case]
    out = checkpoint(tmp_path, layout=layout)
    spoil(out)
    refused(out, *words, "get the checkpoint again")


def test_several_processes_and_weights_from_elsewhere(tmp_path: Path) -> None:
    out = checkpoint(tmp_path)
    config = AutoConfig.from_pretrained(out)
    config.distributed_config = DistributedConfig()
    refused(out, "split SlideSparse linears", config=config)
    model = AutoModelForCausalLM.from_pretrained(out)
    with pytest.raises(ValueError, match="read from safetensors files"):
        type(model).from_pretrained(None, config=AutoConfig.from_pretrained(out), state_dict=model.state_dict())
