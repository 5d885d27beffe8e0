"""What this machine can do: versions, GPUs and their 2:4 units, room, and what would help."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from . import __version__
from .workers import count

PACKAGES = (
    "torch", "transformers", "safetensors", "compressed-tensors", "accelerate", "huggingface_hub", "datasets", "vllm",
)  # fmt: skip
SPARSE_SINCE = (8, 0)
"""Compute capability from which NVIDIA GPUs have 2:4 units for INT8 (Ampere); FP8 needs FP8_SINCE."""
FP8_SINCE = (8, 9)


def examine() -> dict[str, Any]:
    """Everything as plain values, ready for a table or JSON. Never fails for what is not installed."""
    import torch

    gpus = [_gpu(torch.cuda.get_device_properties(number)) for number in range(torch.cuda.device_count())]
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return {
        "slideconvert": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cores_used": count(),
        "gpus": gpus,
        "huggingface_cache": {"path": str(cache), "free_bytes": _free(cache)},
        "huggingface_token": _has_token(),
        "advice": _advice(gpus),
    }


def _gpu(properties: Any) -> dict[str, Any]:
    capability = (properties.major, properties.minor)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sparse_int8": capability >= SPARSE_SINCE,
        "sparse_fp8": capability >= FP8_SINCE,
    }


def _advice(gpus: list[dict[str, Any]]) -> list[str]:
    advice = []
    if not gpus:
        advice.append("no CUDA GPU: converting, verifying and measuring run on the CPU; serving fast needs a GPU")
    for gpu in gpus:
        if not gpu["sparse_int8"]:
            advice.append(f"{gpu['name']} has no 2:4 units: use the dense layout on it")
    return advice


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _has_token() -> bool:
    """Whether huggingface_hub would find a token; the token itself is not kept."""
    from huggingface_hub import get_token

    return get_token() is not None
