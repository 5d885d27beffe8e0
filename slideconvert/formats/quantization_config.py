"""The part of config.json that stock loaders read: quantization_config in the schema of compressed-tensors."""

from __future__ import annotations

from typing import Any

from ..core.schemes import Scheme
from ..runtime.slidesparse_record import AUTO_MAP, METHOD, RECORD
from .base import Format
from .foreign import KEY
from .record import LinearRecord, Record, sealed
from .registry import format_for


def quantization_config(linears: dict[str, LinearRecord], untouched: list[str], layout: str) -> dict[str, Any] | None:
    """The compressed-tensors quantization_config, None if no linear is quantized.

    untouched: linears that stay unquantized, the head first. One scheme for all linears gives the minimal form, targets
    ["Linear"]; several schemes name their linears one by one.
    """
    kinds: dict[tuple[Scheme, Format], list[str]] = {}
    for name, linear in linears.items():
        if linear.scheme.quantized:
            form = format_for(layout, linear.scheme, linear.pattern)
            kinds.setdefault((linear.scheme.unconstrained, form), []).append(name)
    if not kinds:
        return None
    ordered = sorted(kinds, key=lambda kind: (kind[0].name, kind[0].group, kind[1].ct_format(kind[0])))
    groups = [form.ct_group(scheme, ["Linear"] if len(kinds) == 1 else kinds[scheme, form]) for scheme, form in ordered]
    formats = {group["format"] for group in groups}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": [*untouched, *(name for name, linear in linears.items() if not linear.scheme.quantized)],
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
    }


def output_config(source: dict[str, Any], record: Record, untouched: list[str]) -> dict[str, Any]:
    """The config.json of the output: the source's, with its quantization, record and code replaced."""
    config = {key: value for key, value in source.items() if key not in (KEY, "auto_map", RECORD)}
    quantization = quantization_config(record.linears, untouched, record.layout)
    if quantization:
        config[KEY] = quantization
    if record.kernels:
        config["auto_map"] = AUTO_MAP
    return sealed({**config, RECORD: record.to_json()})
