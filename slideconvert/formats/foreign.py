"""quantization_config of checkpoints that other tools wrote: what can be taken, and what is refused by name.

A field that changes what the model computes is read or refused. One that is passed over would make another model of the
same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..runtime.slidesparse_record import METHOD, RECORD
from .bitnet import check_bitnet, check_few_bits

KEY = "quantization_config"
"""The field of config.json that stock loaders read."""
EXPECTED = {
    "weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"},
    "input_activations": {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True},
}
"""What a quantization group must declare."""
SHORT = ("W8A8", "INT8", "FP8_DYNAMIC")
"""Names of compressed-tensors for such groups, which stand for them in the short form {name: targets}."""
CHANGES_THE_MODEL = {
    "transform_config": "an online transform of the activations",
    "kv_cache_scheme": "a quantized KV cache",
}
"""Fields that nothing here carries over; empty ones mean nothing."""
SOURCE = "start from the BF16 model"


def check_quantization(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless the checkpoint is unquantized, as BitNet's own are, or symmetric W8A8 compressed-tensors
    as we write it."""
    check_few_bits(config, where)
    quantization = config.get(KEY)
    if quantization is None or RECORD in config:  # reading the record finds what is wrong with ours
        return
    if not isinstance(quantization, Mapping):
        raise InputError(f"{where}: {KEY} is not a JSON object", hint="download or copy config.json again")
    method = quantization.get("quant_method")
    if method == "bitnet" and config.get("model_type") == "bitnet":
        check_bitnet(quantization, where)
        return
    if method != METHOD:
        raise InputError(
            f"{where}: quantized by '{method}', only compressed-tensors W8A8 can be taken",
            hint=SOURCE,
        )
    for field, meaning in CHANGES_THE_MODEL.items():
        if quantization.get(field):
            raise InputError(f"{where}: {KEY} has {meaning} ({field}), which would be lost", hint=SOURCE)
    _check_sparsity(quantization.get("sparsity_config") or {}, where)
    groups = quantization.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise InputError(f"{where}: config_groups is not a JSON object", hint="download or copy config.json again")
    for name, group in groups.items():
        faults = _group_faults(name, group)
        if faults:
            raise InputError(
                f"{where}: quantization group {name} has {', '.join(faults)}; symmetric 8-bit weights per channel and "
                "dynamic activations per token can be taken",
                hint=SOURCE,
            )


def _check_sparsity(sparsity: Any, where: str) -> None:
    """Raise InputError for weights without their zeros, which are stored under names of their own."""
    form = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else sparsity
    if form != "dense":
        raise InputError(
            f"{where}: the weights are compressed by sparsity_config (format '{form}'), which cannot be read",
            hint=f"decompress them with compressed-tensors, or {SOURCE}",
        )


def _group_faults(name: str, group: Any) -> list[str]:
    """What a quantization group declares otherwise than EXPECTED."""
    if isinstance(group, list):
        return [] if name in SHORT else [f"a short form that is none of {', '.join(SHORT)}"]
    if not isinstance(group, Mapping):
        return ["no fields"]
    faults = []
    for part, expected in EXPECTED.items():
        given = group.get(part) or {}
        if not isinstance(given, Mapping):
            faults.append(f"{part} that are no JSON object")
            continue
        label = part.removeprefix("input_")
        faults += [f"{label} {key} {given.get(key)}" for key, value in expected.items() if given.get(key) != value]
    return faults + (["output_activations"] if group.get("output_activations") else [])
