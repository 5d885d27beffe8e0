"""A trained model with large channels, as pretrained models have them, and what smoothing does to such a model."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from slideconvert.checkpoint.files import SINGLE
from tests.helpers.demo import SHORT_LAYERS, TEXT

CALIBRATION_TEXT = TEXT.with_name("calibration.jsonl")
CALIBRATION = ("--calibration", str(CALIBRATION_TEXT), "--samples", "16", "--length", "64")
BALANCED = ("--layout", "dense", "--block-epochs", 0, *CALIBRATION)
NORMS = ("input_layernorm", "post_attention_layernorm")
UP = "mlp.up_proj"
READERS = {
    NORMS[0]: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    NORMS[1]: ("mlp.gate_proj", UP),
    UP: ("mlp.down_proj",),
}
"""By submodule that makes the channels of an input, the linears that read them."""
LARGE, TIMES = (3, 17, 40), 64
"""The channels that are made large, and by what: a power of two, so that the model stays the same to the bit."""


def enlarged(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of a Llama, changed in place: some channels of each input are TIMES as large, their columns as much
    smaller."""
    for layer in range(layers):
        for maker, submodules in READERS.items():
            tensors[f"model.layers.{layer}.{maker}.weight"][list(LARGE)] *= TIMES
            for submodule in submodules:
                tensors[f"model.layers.{layer}.{submodule}.weight"][:, list(LARGE)] /= TIMES
    return tensors


def with_outliers(short_demo: Path, out: Path) -> Path:
    """The short demo model with large channels."""
    shutil.copytree(short_demo, out)
    save_file(enlarged(load_file(out / SINGLE), SHORT_LAYERS), out / SINGLE, metadata={"format": "pt"})
    return out


def converted_smoothed(source: Path, out: Path) -> Path:
    """Pruned to 2:8 and quantized to INT8 with smoothing, in the dense layout."""
    from slideconvert import ConvertOptions, convert

    convert(
        source, out, ConvertOptions(calibration=CALIBRATION_TEXT, samples=16, length=64, layout="dense", block_epochs=0)
    )
    return out
