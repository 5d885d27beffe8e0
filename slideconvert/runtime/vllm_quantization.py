"""A SlideSparse checkpoint as vLLM sees it: stock compressed-tensors, with our method on the linears of the record.

vLLM's own CompressedTensorsConfig decides which linear has which scheme, which stay unquantized, and about the head and
the KV cache. Our record adds the patterns and the layout.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
    CompressedTensorsLinearMethod,
)

from ..core.schemes import SCHEMES, W4A16
from ..errors import InputError
from ..kernels.backends.choose import backends_for
from ..kernels.specs import KINDS
from .bundle import check_bundle
from .slidesparse_record import (
    GQS_FORMAT,
    RECORD,
    REINSTALL_HINT,
    SETTINGS,
    SLIDE_FORMAT,
    RecordedLinear,
    RuntimeSettings,
    code_hashes,
    group_numbers,
    read_linears,
    read_settings,
)
from .vllm_linear import SlideSparseLinearMethod
from .vllm_plugin import NAME
from .vllm_stock import HOST

DENSE = {scheme.ct_type: scheme.ct_format for scheme in SCHEMES.values() if scheme.quantized and not scheme.grouped}
"""compressed-tensors number type -> its dense format, by which vLLM finds the scheme of a slide group."""


class SlideSparseConfig(CompressedTensorsConfig):
    """Stands at module level and holds no open handles: vLLM pickles it to its engine processes.

    linears: by the name of the module in vLLM. layout: of the checkpoint. settings: how the user wants them to
    run. model_type: of config.json.
    """

    linears: dict[str, RecordedLinear]
    layout: str
    settings: RuntimeSettings
    model_type: str

    def get_name(self) -> str:
        return NAME

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SlideSparseConfig:
        config = copy.deepcopy(config)
        for group in (config.get("config_groups") or {}).values():
            stored = group.get("format", config.get("format"))
            if stored == SLIDE_FORMAT:
                group["format"] = DENSE[group["weights"]["type"]]
            elif stored == GQS_FORMAT:
                group["format"] = W4A16.ct_format
        ours: SlideSparseConfig = super().from_config(config)
        return ours

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Read the record. vLLM calls this once, before it starts the engine, with the whole config.json.

        InputError if there is no record, if it is newer than we are or broken, if the code in the folder is not what
        it was published with, or if the backend asked for is unknown.
        """
        record, settings = getattr(hf_config, RECORD, None), getattr(hf_config, SETTINGS, None)
        try:
            self.layout, self.linears = read_linears(record, hf_config.quantization_config, model_name)
            families = [backends_for(KINDS[linear.kind], HOST) for linear in self.linears.values()]
            self.settings = read_settings(settings, families, model_name)
            self.model_type = str(getattr(hf_config, "model_type", ""))
            hashes = code_hashes(record or {}, model_name)
        except ValueError as error:
            raise InputError(str(error)) from error
        if Path(model_name).is_dir():
            check_bundle(Path(model_name), hashes)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        super().apply_vllm_mapper(hf_to_vllm_mapper)
        named = {hf_to_vllm_mapper._map_name(name): linear for name, linear in self.linears.items()}
        self.linears = {name: linear for name, linear in named.items() if name is not None}

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """vLLM's own choice, except for linears of the record. InputError if the two contradict each other."""
        method = super().get_quant_method(layer, prefix)
        if not isinstance(layer, LinearBase) or type(method) is not CompressedTensorsLinearMethod:
            return method
        ranks = get_tensor_model_parallel_world_size()
        if self.model_type == "bitnet" and ranks > 1:
            raise InputError(
                f"BitNet over {ranks} tensor-parallel ranks: vLLM runs it through transformers' modules, which do not "
                "say how to divide it, and would divide its attention and not what reads it",
                hint="use --tensor-parallel-size 1, and --data-parallel-size for several GPUs",
            )
        parent, _, kind = prefix.rpartition(".")
        names = [f"{parent}.{part}" for part in self.packed_modules_mapping.get(kind, [kind])]
        recorded = [self.linears[name] for name in names if name in self.linears]
        if not recorded and self.layout == "dense":
            return method  # others quantized it: vLLM runs it
        declared = numbers(self.get_scheme_dict(layer, prefix))
        wrong = [linear.numbers for linear in recorded if linear.numbers != declared]
        if wrong or len(recorded) < len(names):
            found = f"says {wrong[0]}" if wrong else f"has {len(recorded)} of {', '.join(names)}"
            raise InputError(f"{prefix}: quantization_config says {declared}, {RECORD} {found}", hint=REINSTALL_HINT)
        return SlideSparseLinearMethod(prefix, names, recorded, self.settings, method)


def numbers(scheme: Any) -> str:
    """The numbers of a config group as vLLM read it, named as in `RecordedLinear.numbers`."""
    weights, kind = scheme["weights"], {"int": "int", "float": "fp"}[scheme["weights"].type]
    if not weights.group_size:
        return f"{kind}{weights.num_bits}"
    activations = 8 if scheme["input_activations"] else 16
    return group_numbers(f"w{weights.num_bits}a{activations}", weights.group_size, symmetric=weights.symmetric)
