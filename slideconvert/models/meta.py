"""Checkpoints without weights: what a plan needs to know of a model, from a few kilobytes of it.

From config.json alone: the architecture is transformers' own, built without memory for its parameters; it knows every
tensor's name and shape, and config.json gives their dtype. It does not know how quantized weights are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.container import Placed, TensorSpec
from ..checkpoint.files import CONFIG, PICKLES, SINGLE, STAGING
from ..checkpoint.reader import Checkpoint, read_json
from ..checkpoint.shard_store import NoWeights
from ..core.ternary import LATENT
from ..errors import InputError, pick
from ..formats.bitnet import bitnet_coding
from ..runtime.slidesparse_record import RECORD
from .families import architecture_of
from .load import empty_model

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""dtype of a config.json -> the container's."""


def has_weights(folder: Path) -> bool:
    """Whether anything in `folder` claims to be weights, whole or not: then they are what a plan is made from."""
    weights = (".safetensors", *PICKLES)
    return (folder / STAGING).exists() or any(path.name.endswith(weights) for path in folder.iterdir())


def open_or_describe(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, without weights a meta checkpoint. InputError as both raise it."""
    without_weights = (folder / CONFIG).is_file() and not has_weights(folder)
    return meta_checkpoint(folder) if without_weights else Checkpoint.open(folder)


def meta_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that config.json in `folder` describes; reading a tensor of it raises InputError.

    InputError for an unknown architecture, one that is not fully described, and one whose weights are quantized.
    """
    config, where = read_json(folder / CONFIG), folder / CONFIG
    architecture = architecture_of(config)
    architecture.decoder_linears(config)
    if _is_quantized(config):
        raise InputError(
            f"{where}: the weights are quantized already, and config.json does not tell how they are stored",
            hint="plan the BF16 model; sparsify, slide and relayout take quantized weights, once they are downloaded",
        )
    dtype = DTYPES[pick(_dtype(config), DTYPES, f"dtype in {where}:")]
    model = empty_model(Checkpoint(folder, config, {}))
    tied = architecture.is_tied(config)
    specs = [
        TensorSpec(name, dtype, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if not (tied and name == f"{architecture.head}.weight")
    ]
    return Checkpoint(folder, config, {spec.name: Placed(folder / SINGLE, 0, spec) for spec in specs}, NoWeights())


def _is_quantized(config: dict[str, Any]) -> bool:
    """Whether weights are stored as something else than the parameters; latent weights of BitNet are not."""
    if config.get("quantization_config") is None:
        return config.get(RECORD) is not None
    return bitnet_coding(config) != LATENT


def _dtype(config: dict[str, Any]) -> str:
    """The word after the last dot, as in torch.bfloat16. bfloat16 where config.json does not say."""
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").rpartition(".")[2]
