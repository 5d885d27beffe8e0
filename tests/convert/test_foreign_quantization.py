"""quantization_config of other tools: read whole, or refused by name before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli
from tests.helpers import pico
from tests.helpers.calibrated import write_tokenizer
from tests.helpers.serving import edit_config

HADAMARD = {"R4": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}}
FP8_CACHE = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
SPARSE_24 = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"]}
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an online transform": ({"transform_config": {"config_groups": HADAMARD}}, ("transform_config", "transform")),
    "a quantized KV cache": ({"kv_cache_scheme": FP8_CACHE}, ("kv_cache_scheme", "KV cache")),
    "weights without zeros": ({"sparsity_config": SPARSE_24}, ("sparsity_config", "sparse-24-bitmask")),
    "sparsity of no kind": ({"sparsity_config": 24}, ("sparsity_config", "'24'")),
    "another short form": ({"config_groups": {"W4A16": ["Linear"]}}, ("group W4A16", "W8A8, INT8, FP8_DYNAMIC")),
    "static scales": ({"config_groups": {"FP8": ["Linear"]}}, ("group FP8", "FP8_DYNAMIC")),
    "groups in a list": ({"config_groups": [{}]}, ("config_groups", "JSON object")),
    "a group that is a number": ({"config_groups": {"group_0": 8}}, ("group_0", "no fields")),
    "weights that are a number": ({"config_groups": {"group_0": {"weights": 8}}}, ("group_0", "weights")),
}


def foreign(folder: Path, **fields: Any) -> Path:
    """A W8A8 checkpoint of another tool with other fields in its quantization_config."""
    write_tokenizer(pico.w8a8(folder))
    edit_config(folder, lambda config: config["quantization_config"].update(fields))
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_by_name(cli: Cli, text: Path, tmp_path: Path, case: str) -> None:
    fields, said = REFUSED[case]
    source, out = foreign(tmp_path / "source", **fields), tmp_path / "out"
    for words in (("plan", source), ("sparsify", source, out), ("eval", source, "--text", text, "--length", "24")):
        done = cli(*words, *(("--method", "magnitude") if words[0] != "eval" else ()))
        lines = done.err.strip().splitlines()
        assert done.code == 2 and len(lines) == 1 and all(word in lines[0] for word in said), done
    assert not out.exists()


@pytest.mark.parametrize("fields", [24, [], "W8A8"])
def test_a_quantization_that_is_no_object_is_refused(cli: Cli, tmp_path: Path, fields: Any) -> None:
    source = pico.write(tmp_path / "source", config={"quantization_config": fields})
    done = cli("plan", source, "--method", "magnitude")
    assert done.code == 2 and "quantization_config is not a JSON object" in done.err


def test_sparse_weights_of_other_names_are_refused_before_their_tensors_are_missed(cli: Cli, tmp_path: Path) -> None:
    """As compressed-tensors wrote them: weight_shape, bitmask and compressed values instead of a weight."""
    tensors = {}
    for name, tensor in pico.weights().items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        linear = name.removesuffix(".weight")
        tensors[f"{linear}.compressed"] = tensor[:, ::2].contiguous()
        tensors[f"{linear}.bitmask"] = torch.zeros(tensor.shape[0], tensor.shape[1] // 8, dtype=torch.uint8)
    quantization = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": SPARSE_24}
    source = pico.write(tmp_path / "source", tensors, {"quantization_config": quantization})
    done = cli("sparsify", source, tmp_path / "out", "--method", "magnitude")
    assert done.code == 2 and "sparse-24-bitmask" in done.err and "missing" not in done.err


@pytest.mark.parametrize("name", ["W8A8", "INT8"])
def test_the_short_form_of_a_group_is_read(cli: Cli, text: Path, tmp_path: Path, name: str) -> None:
    """The same model, to the same bytes."""
    long, short = foreign(tmp_path / "long"), foreign(tmp_path / "short", config_groups={name: ["Linear"]})
    outs = []
    for source in (long, short):
        outs.append(tmp_path / f"{source.name}-out")
        assert cli("sparsify", source, outs[-1], "--method", "magnitude").code == 0
        assert cli("eval", source, "--text", text, "--length", "24").code == 0
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()
