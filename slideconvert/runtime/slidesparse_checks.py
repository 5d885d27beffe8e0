"""Whether the weight files of a checkpoint hold what its record and its model need, and whether devices hold them.

This file is copied into every checkpoint, beside modeling_slidesparse.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open

from .slidesparse_record import RECORD

STORED = {
    torch.int8: ("I8",),
    torch.float8_e4m3fn: ("F8_E4M3",),
    torch.uint8: ("U8",),
    torch.int16: ("I16",),
    torch.int32: ("I32",),
    torch.int64: ("I64",),
    torch.bfloat16: ("BF16",),
}
FLOATS = ("F32", "BF16", "F16")
QUANTIZED = (
    "weight_packed",
    "weight_meta",
    "weight_scale",
    "weight_row_index",
    "weight_groups",
    "weight_values",
    "weight_zero_point",
    "weight_shape",
)
"""Tensors that only quantized linears have."""


def stored_tensors(files: list[str]) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape of every tensor in safetensors files, by name."""
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                found[name] = (part.get_dtype(), list(part.get_shape()))
    return found


def needed_tensors(model: Any, prefix: str) -> set[str]:
    """Names of the tensors that the checkpoint must have: a model may add a new head, and nothing else."""
    tied = set(model.all_tied_weights_keys)
    body = f"{model.base_model_prefix}."
    names = {f"{prefix}{name}" for name in model.state_dict() if name not in tied}
    return {name for name in names if name.startswith((body, "lm_head."))}


def tensor_faults(
    stored: Mapping[str, tuple[str, list[int]]], linears: Mapping[str, Any], needed: set[str]
) -> Iterator[str]:
    """Differences between the weight files and the record. transformers would initialize missing tensors, drop
    unexpected ones, and load wrong ones as they are."""
    for name in sorted(needed - stored.keys()):
        yield f"tensor {name} is missing"
    for name, (dtype, shape) in sorted(stored.items()):
        module, _, part = name.rpartition(".")
        if module not in linears:
            if dtype in ("I8", "F8_E4M3") or part in QUANTIZED:
                yield f"{name}: {dtype} {shape} of a quantized linear that {RECORD} does not name"
            continue
        parameter = dict(linears[module].named_parameters()).get(part)
        if parameter is None:
            yield f"{name}: {dtype} {shape} has no place in a {linears[module].spec.layout} {linears[module].spec}"
            continue
        wanted = FLOATS if part == "bias" else STORED.get(parameter.dtype, FLOATS)
        if dtype not in wanted or shape != list(parameter.shape):
            spec = linears[module].spec
            yield f"{name}: {dtype} {shape}, {spec} needs {wanted[0]} {list(parameter.shape)}"


def refuse_offload(device_map: Any, linears: Mapping[str, Any]) -> None:
    """ValueError if a linear would be offloaded: its prepared weight cannot be moved to the device for every call."""
    if not isinstance(device_map, Mapping):
        return
    beside_gpu = not {str(device) for device in device_map.values()} <= {"cpu", "disk"}
    for name in linears:
        parts = name.split(".")
        places = [".".join(parts[:count]) for count in range(len(parts), -1, -1)]
        device = str(next((device_map[place] for place in places if place in device_map), "cpu"))
        if device == "disk" or (device == "cpu" and beside_gpu):
            raise ValueError(
                f"{name} would be offloaded to {device}, which SlideSparse linears cannot be (raise max_memory, use "
                'more GPUs, or device_map="cpu")'
            )
