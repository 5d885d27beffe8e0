"""SlideSparse checkpoints in transformers: their quantized linears become SlideSparseLinear, all else stays stock.

Two ways lead here. With slideconvert installed, hook.py hands every checkpoint of ours to the quantizer below, which
runs slideconvert's kernels. Without it, `trust_remote_code=True` runs the copy of this file in the checkpoint: the
class named in auto_map takes the kernels beside it, each compared with the sha256 in config.json before it is run.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from .slidesparse_checks import needed_tensors, refuse_offload, stored_tensors, tensor_faults
from .slidesparse_fusion import Kernels, fuse, make_ready
from .slidesparse_record import (
    KERNELS,
    METHOD,
    RECORD,
    REINSTALL_HINT,
    SETTINGS,
    RecordedLinear,
    RuntimeSettings,
    bundle_faults,
    changed,
    code_hashes,
    is_ours,
    misplaced,
    packed_layouts,
    read_linears,
    read_settings,
    saved_again,
)

OURS = "slidesparse"
logger = logging.getLogger("slidesparse")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

_packages: dict[str, str] = {}
"""The kernels' package by the name of the quantization method that runs them."""


@cache
def say_once(message: str) -> None:
    """In the log, the first time in this process."""
    logger.warning(message)


class SlideSparseQuantizationConfig(QuantizationConfigMixin):
    """The quantization_config of config.json, unchanged: transformers saves it again."""

    def __init__(self, quant_method: str, **fields: Any) -> None:
        self.quant_method = quant_method
        self.fields = {"quant_method": METHOD, **fields}

    def to_dict(self) -> dict[str, Any]:
        return dict(self.fields)

    def get(self, name: str, default: Any = None) -> Any:
        """Like dict.get: transformers calls it on configs that were just read and on those of loaded models."""
        return getattr(self, name, default)


class SlideSparseQuantizer(HfQuantizer):
    """Replaces the linears of the record before the weights are loaded, and prepares them afterwards."""

    requires_calibration = True

    def __init__(self, quantization_config: SlideSparseQuantizationConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.package = _packages[quantization_config.quant_method]
        self.linears: dict[str, Any] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.settings = RuntimeSettings()

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """transformers calls this again with the device map that "auto" resolves to."""
        refuse_offload(device_map, self.linears)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, device_map: Any = None, **_: Any
    ) -> None:
        config, where = model.config, str(model.config.name_or_path)
        record: Any = getattr(config, RECORD, None)
        entries = read_linears(record, self.quantization_config.fields, where)[1]
        if getattr(config, "distributed_config", None) is not None:
            raise ValueError(f"{where}: transformers cannot split SlideSparse linears over processes (use vLLM)")
        if not checkpoint_files or not str(checkpoint_files[0]).endswith(".safetensors"):
            raise ValueError(
                f"{where}: SlideSparse weights are read from safetensors files (give the checkpoint's path)"
            )
        # The folder itself, or a snapshot in the Hub's cache, which holds the files that were fetched so far.
        folder = Path(checkpoint_files[0]).parent
        for fault in bundle_faults(folder, code_hashes(record, where), complete=Path(where).is_dir()):
            raise ValueError(f"{where}: {fault} ({REINSTALL_HINT})")

        # A model without a head calls its linears layers.0…, its checkpoint model.layers.0….
        prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
        self.linears = {
            name.removeprefix(prefix): self._linear(entry, f"{where}: {name}") for name, entry in entries.items()
        }
        families = [self._backends(linear) for linear in self.linears.values()]
        self.settings = read_settings(getattr(config, SETTINGS, None), families, where)
        for name, linear in self.linears.items():
            old, shape = _find(model, name), [linear.out_features, linear.in_features]
            if not isinstance(old, nn.Linear) or list(old.weight.shape) != shape:
                found = f"one of {list(old.weight.shape)}" if isinstance(old, nn.Linear) else "no such linear"
                raise ValueError(
                    f"{where}: {RECORD} names {prefix}{name} {shape}, the model has {found} ({REINSTALL_HINT})"
                )
            if old.bias is not None:
                linear.bias = old.bias
            model.set_submodule(name, linear)
        if self.settings.fuse is not False:
            self._fuse(model)
        self.dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()} if prefix else {}
        refuse_offload(device_map, self.linears)
        made = {f"{prefix}{name}": linear for name, linear in self.linears.items()}
        for fault in tensor_faults(stored_tensors(checkpoint_files), made, needed_tensors(model, prefix)):
            raise ValueError(f"{where}: {fault} ({REINSTALL_HINT})")

    def _fuse(self, model: Any) -> None:
        linear, producers = self._kernels("linear"), self._kernels("producers.reference")
        kernels = Kernels(linear.SlideSparseLinear, linear.produced, linear.ready_to_produce, producers.Producer)
        for reason in fuse(model, kernels):
            say_once(f"norms and activations are not fused with quantization: {reason}")

    def _kernels(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")

    def _backends(self, linear: Any) -> Mapping[str, Any]:
        """The backends of its kind of linear, by name."""
        backends: Mapping[str, Any] = self._kernels("backends.choose").backends_for(type(linear.spec))
        return backends

    def _settings(self, linear: Any) -> Any:
        """The user's settings as the kernels take them."""
        asked = self.settings.of(self._backends(linear))
        return self._kernels("backends.choose").Settings(asked.backend, asked.memory, asked.measure)

    def _linear(self, entry: RecordedLinear, where: str) -> Any:
        """A module without weights, and without a bias: the model decides about that."""
        try:
            spec = self._kernels("specs").parse_spec(entry.spec)
        except ValueError as error:
            raise ValueError(f"{where}: {error} ({REINSTALL_HINT})") from error
        module = self._kernels("linear")
        return module.SlideSparseLinear(spec, bias=False, dtype=torch.float32, device="meta")

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        # transformers 5.17 leaves renamed tensors of a quantized model (one without a head) in the file's dtype.
        for name, dtype in self.dtypes.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        way_out = REINSTALL_HINT
        if self.settings.backend != "auto":
            way_out += f', or set {SETTINGS} to {{"backend": "auto"}}'
        for name, linear in self.linears.items():
            linear.requires_grad_(False)  # transformers loads floats as trainable
            try:
                linear.prepare(self._settings(linear), model.dtype)
            except ValueError as error:
                raise ValueError(f"{model.config.name_or_path}: {name}: {error} ({way_out})") from error
        make_ready(model, model.dtype)
        # The hashes and the code belong to the folder that was read, not to one that will be saved.
        setattr(model.config, RECORD, saved_again(getattr(model.config, RECORD), "transformers"))
        if hasattr(model.config, "auto_map"):
            del model.config.auto_map
        return model


class SlideSparseForCausalLM:
    """The class that auto_map names. It loads the architecture's own model, with the checkpoint's kernels."""

    @classmethod
    def from_pretrained(cls, path: str, *args: Any, config: Any, **options: Any) -> Any:
        if options.get("quantization_config") is not None:
            raise ValueError(f"{path}: quantized already, takes no quantization_config (leave trust_remote_code out)")
        hub = {name: options[name] for name in HUB_OPTIONS if name in options}
        quantization, record = getattr(config, "quantization_config", None), getattr(config, RECORD, None)
        if is_ours(quantization, record):
            package = bundled_kernels(path, record, {**hub, "revision": _revision(config, hub)})
            claim(config, f"{OURS}-{package.rpartition('_')[2]}", package)
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(path, *args, config=config, **options)

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Any:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """transformers calls this on every class that an auto_map names; there is nothing to do."""


def claim(config: Any, method: str, package: str) -> None:
    """Have transformers take our quantizer, with the kernels of `package`, for the checkpoint of this model config."""
    _packages[method] = package
    AUTO_QUANTIZATION_CONFIG_MAPPING[method] = SlideSparseQuantizationConfig
    AUTO_QUANTIZER_MAPPING[method] = SlideSparseQuantizer
    config.quantization_config = {**config.quantization_config, "quant_method": method}


def refuse_other_quantization(config: Any) -> None:
    """ValueError if the weights are in a layout that only we read, and so no quantization_config of the caller's."""
    if packed := packed_layouts(config.quantization_config):
        raise ValueError(
            f"{config.name_or_path}: the {' and '.join(packed)} layout takes no quantization_config (leave it out, or "
            "make the dense layout with slideconvert relayout)"
        )


def bundled_kernels(path: str, record: Any, hub: Mapping[str, Any]) -> str:
    """Fetch the kernels of a checkpoint, folder or Hub id, check every file, and return the package they make.

    They are copied beside this file, in transformers' cache of code, under the hash of them all: what is run is what
    was checked. ValueError for a missing or changed file; unlisted ones are not copied, and refused later.
    """
    hashes = (record or {}).get(KERNELS)
    if not hashes:
        raise ValueError(
            f"{path}: config.json has no sha256 of the kernels (install slideconvert, or {REINSTALL_HINT})"
        )
    files = {}
    for name, digest in sorted(hashes.items()):
        if fault := misplaced(name):
            raise ValueError(f"{path}: {fault} ({REINSTALL_HINT})")
        try:
            data = Path(cached_file(path, name, **hub)).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {name}: file is missing ({REINSTALL_HINT})") from error
        for fault in changed(data, name, digest):
            raise ValueError(f"{path}: {fault} ({REINSTALL_HINT})")
        files[name] = data
    return _package(files)


def _package(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in files.items())).hexdigest()[:16]
    folder = Path(__file__).parent / f"{KERNELS}_{digest}"
    for name, data in files.items():
        target = folder.joinpath(*name.split("/")[1:])
        if target == folder or (target.is_file() and target.read_bytes() == data):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.{os.getpid()}")  # other processes may write the same file
        beside.write_bytes(data)
        beside.replace(target)
    importlib.invalidate_caches()
    return f"{__package__}.{folder.name}"


def _revision(config: Any, hub: Mapping[str, Any]) -> Any:
    """The commit that config.json came from."""
    return getattr(config, "_commit_hash", None) or hub.get("revision")


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
