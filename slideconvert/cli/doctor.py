"""What this machine can do: versions, GPUs and their 2:4 units, disk space, advice; and how it runs a checkpoint."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..api.tuned_linears import of_checkpoint
from ..api.tuning import coverage
from ..checkpoint.disk import free_bytes
from ..checkpoint.reader import Checkpoint
from ..core.choices import HOSTS
from ..core.workers import count
from ..formats.record import describe_linear, read_record
from ..kernels import cache
from ..kernels.backends.choose import BACKENDS, TORCH, Settings, choose
from ..kernels.backends.cusparselt import SPARSE_SINCE
from ..kernels.backends.dense import Dense
from ..kernels.backends.rule import BUCKETS
from ..kernels.backends.table import Key, installed, key_of, parse, table_of
from ..kernels.group_spec import GroupSpec
from ..kernels.slide_spec import SlideSpec
from ..kernels.spec import LinearSpec
from ..models.families import decoder_linears

PACKAGES = (
    "torch", "triton", "transformers", "safetensors", "compressed-tensors", "accelerate", "huggingface_hub", "datasets",
    "gguf", "vllm",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Everything as plain values, ready for a table or JSON. Packages that are not installed cause no error."""
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
        "backends": _backends(),
        "kernel_cache": kernel_cache(),
        "huggingface_cache": {"path": str(cache), "free_bytes": free_bytes(cache)},
        "huggingface_token": _has_token(),
        "advice": _advice(gpus),
    }


def explain(checkpoint: Checkpoint, device: str) -> list[dict[str, Any]]:
    """Which backend runs the quantized linears of a checkpoint on `device`, and why; one entry per kind of linear.

    Nothing is measured: where no table has the times, that is the reason given.
    """
    import torch

    record = read_record(checkpoint.config, str(checkpoint.path))
    numbers: Counter[LinearSpec] = Counter()
    places: dict[LinearSpec, list[str]] = {}
    for linear in decoder_linears(checkpoint.config):
        spec = describe_linear(checkpoint, record, linear.name).linear_spec
        if spec:
            numbers[spec] += 1
            if linear.kind not in places.setdefault(spec, []):
                places[spec].append(linear.kind)
    rows = []
    for spec, number in numbers.items():
        choice = choose(spec, torch.device(device), Settings(measure=0.0))
        chosen = {"backend": choice.backend.name, "why": choice.why}
        rows.append({"linears": places[spec], "number": number, "kind": str(spec), **chosen})
    return rows


def _backends() -> dict[str, dict[str, str]]:
    """Device -> backend -> why it cannot run a typical linear of its kind there, "" where it can."""
    import torch

    typical: dict[type[LinearSpec], LinearSpec] = {
        SlideSpec: SlideSpec(4096, 4096, 8, torch.int8),
        GroupSpec: GroupSpec(4096, 4096, 16, 4, 4096 * 128, symmetric=False),
    }
    return {
        str(device): {backend.name: backend.refusal(typical[backend.runs], device) for backend in BACKENDS}
        for device in devices() or [torch.device("cpu")]
    }


def devices() -> list[Any]:
    """The CUDA devices."""
    import torch

    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def kernel_cache() -> dict[str, Any]:
    """The folder of compiled kernels and tables of times, why it is not used ("" if it is), and its tables.

    used: whether a table is for a GPU that is here and the versions that are installed.
    """
    folder = cache.path()
    fault = cache.fault(folder)
    here = [key_of(device, host) for device in devices() for host in HOSTS]
    tables: list[dict[str, Any]] = []
    for path in [] if fault else sorted(folder.glob("times-*.json")):
        try:
            found = parse(path.read_bytes())
        except (OSError, ValueError) as error:
            tables.append({"file": path.name, "fault": str(error)})
            continue
        used = replace(found.key, vllm="") in here
        tables.append({"file": path.name, **asdict(found.key), "linears": len(found.times), "used": used})
    return {"path": str(folder), "fault": fault, "tables": tables}


def covered(ckpt: Path, device: Any) -> dict[str, list[int]]:
    """By program: how many kinds of linears of a checkpoint load without measuring on a CUDA device, of how many."""
    found = {}
    for host in HOSTS:
        linears = of_checkpoint(Checkpoint.open(ckpt), 1, fused=host == "vllm")
        if host == TORCH.name:
            found[host] = list(coverage(linears, device, TORCH))
            continue
        # Without importing vLLM: the times of its own kernel are measured first.
        key = key_of(device, host, installed("vllm"))
        keys = [Key(**{name: one[name] for name in asdict(key)}) for one in kernel_cache()["tables"] if one.get("used")]
        tables = [table_of(one) for one in (key, *keys) if one.host == host]
        known = {Dense.timed_as(spec) for spec in linears}
        done = [name for name in known if any(len(one.of(name).get("stock", {})) == len(BUCKETS) for one in tables)]
        found[host] = [sum(Dense.timed_as(spec) in done for spec in linears), len(linears)]
    return found


def _gpu(properties: Any) -> dict[str, Any]:
    import torch

    capability = (properties.major, properties.minor)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sparse_int8": capability >= SPARSE_SINCE[torch.int8],
        "sparse_fp8": capability >= SPARSE_SINCE[torch.float8_e4m3fn],
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


def _has_token() -> bool:
    """Whether huggingface_hub would find a token; the token itself is not kept."""
    from huggingface_hub import get_token

    return get_token() is not None
