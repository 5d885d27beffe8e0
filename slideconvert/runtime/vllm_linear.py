"""One (fused) linear of a SlideSparse checkpoint in vLLM, whatever part of it a tensor-parallel rank holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
)
from vllm.model_executor.parameter import ChannelQuantScaleParameter

from ..core.patterns import BlockPattern
from ..core.schemes import SCHEMES
from ..errors import InputError
from ..kernels.backends.base import Backend, Codes, LinearSpec
from ..kernels.backends.choose import BACKENDS, choose
from .shards import Shard
from .slidesparse_record import REINSTALL_HINT, SETTINGS, AnyLinear, QuantizedLinear, backend_for
from .vllm_parameter import StoredParameter

logger = init_logger(f"vllm.{__name__}")  # only what is below "vllm" comes out of vLLM's logging

W8A8 = (CompressedTensorsW8A8Int8, CompressedTensorsW8A8Fp8)


@register_weight_loader_v2_supported_method
class SlideSparseLinearMethod(LinearMethodBase):
    """The linear on one of our backends; on vLLM's own dense kernels where that cannot be (`_obstacle`).

    name: the module's name. parts: the linears that are fused in it. wanted: auto, or the name of a backend.
    stock: what vLLM would run the dense layout with.
    """

    def __init__(
        self, name: str, parts: list[QuantizedLinear], layout: str, wanted: str, stock: LinearMethodBase
    ) -> None:
        self.name, self.parts, self.layout, self.stock = name, parts, layout, stock
        self.wanted = backend_for(wanted, BACKENDS)
        self.dtype = getattr(torch, SCHEMES[parts[0].scheme].dtype)
        self.shards: list[Shard] = []
        self.backend: Backend | None = None

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        weight_loader: Any = None,
        **extra: Any,
    ) -> None:
        """Empty parameters for what the checkpoint holds, in the layer. InputError if it cannot be this layer's."""
        check_shapes(self.name, self.parts, layer, input_size, output_partition_sizes)
        ranks = input_size // input_size_per_partition
        rank = layer.tp_rank if ranks > 1 else 0
        self.shards = [Shard.of_rank(BlockPattern(part.length), input_size, rank, ranks) for part in self.parts]
        obstacle = self._obstacle(layer, ranks)
        create_stock = {
            "input_size_per_partition": input_size_per_partition,
            "output_partition_sizes": output_partition_sizes,
            "input_size": input_size,
            "output_size": output_size,
            "params_dtype": params_dtype,
            "weight_loader": weight_loader,
            **extra,
        }
        if obstacle:
            self._say(obstacle)
            # Its dense weight is made from the packed tensors once they are loaded.
            with torch.device("meta") if self.layout == "slide" else nullcontext():
                self.stock.create_weights(layer, **create_stock)
            if self.layout == "dense":
                return
            del layer.weight
        rows = sum(output_partition_sizes)
        layer.logical_widths = output_partition_sizes
        scale = torch.empty(rows, 1, dtype=torch.float32)
        layer.register_parameter(
            "weight_scale", ChannelQuantScaleParameter(data=scale, output_dim=0, weight_loader=weight_loader)
        )
        for name in ("weight_packed", "weight_meta") if self.layout == "slide" else ("weight",):
            parameter = StoredParameter.of(name, self.name, self.parts, self.shards, (rows, self.dtype), weight_loader)
            layer.register_parameter(name, parameter)
        if not obstacle:
            spec = LinearSpec(rows, input_size_per_partition, self.parts[0].length, self.dtype)
            self._choose(spec, scale.device)

    def _choose(self, spec: LinearSpec, device: torch.device) -> None:
        try:
            choice = choose(spec, device, self.wanted)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"set the backend in {SETTINGS} to auto") from error
        self.backend = choice.backend
        logger.info_once("SlideSparse %s layout on backend %s (%s)", self.layout, choice.backend.name, choice.why)
        # Compiled graphs are cached by the hash of the configuration, which must tell one backend from another.
        config = get_current_vllm_config()
        if isinstance(config.additional_config, dict):
            config.additional_config.setdefault("slidesparse", {})[self.name] = choice.backend.name

    def _obstacle(self, layer: Any, ranks: int) -> str:
        """Why our backends cannot run this layer, with the way out; "" if they can."""
        patterns = sorted({str(shard.pattern) for shard in self.shards})
        if len(patterns) > 1:
            return f"the linears fused in it have patterns {', '.join(patterns)}; convert with one pattern for all"
        if not isinstance(layer.scheme, W8A8):
            return f"vLLM runs this scheme as {type(layer.scheme).__name__} on this device"
        shard = self.shards[0]
        if not shard.aligned:
            return (
                f"tensor parallelism over {ranks} ranks cuts its K = {shard.columns} columns into {shard.width}, no "
                f"multiple of L = {shard.pattern.block} of its pattern {shard.pattern}; use fewer ranks, or convert "
                "this layer with a pattern whose L divides it"
            )
        return ""

    def _say(self, obstacle: str) -> None:
        layers = re.sub(r"\.\d+\.", ".*.", self.name)
        logger.warning_once("SlideSparse: %s runs on vLLM's dense kernels, not faster: %s", layers, obstacle)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Turn what was loaded into what runs, and drop it. InputError if it is damaged."""
        try:
            if self.backend:
                operand = self.backend.prepare(self._codes(layer))
            elif self.layout == "slide":
                operand = self._dense(layer)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        if self.backend or self.layout == "slide":
            for name in ("weight", "weight_packed", "weight_meta"):
                layer._parameters.pop(name, None)
            own(layer, "operand" if self.backend else "weight", operand)
        if self.backend:
            own(layer, "weight_scale", layer.weight_scale.data.view(-1))
        else:
            self.stock.process_weights_after_loading(layer)

    def _codes(self, layer: Any) -> Codes:
        assert self.backend is not None
        if self.layout == "dense":
            return Codes(self.backend.spec, dense=layer.weight.data)
        packed = self.shards[0].cut(layer.weight_packed.data, layer.weight_meta.data)
        return Codes.packed(self.backend.spec, *packed)

    def _dense(self, layer: Any) -> Tensor:
        """This rank's columns of the packed weight [rows, width], each of the fused linears by its own pattern."""
        values = layer.weight_packed.data.split(layer.logical_widths)
        meta = layer.weight_meta.data.split(layer.logical_widths)
        # Bytes: not every device can concatenate float8.
        parts = [shard.dense(*part).view(torch.int8) for shard, *part in zip(self.shards, values, meta, strict=True)]
        return torch.cat(parts).view(self.dtype)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> [..., rows] of the same dtype."""
        if self.backend is None:
            return self.stock.apply(layer, x, bias)
        out = self.backend(x.reshape(-1, x.shape[-1]), layer.operand, layer.weight_scale, bias)
        return out.view(*x.shape[:-1], out.shape[-1])


def check_shapes(name: str, parts: Sequence[AnyLinear], layer: Any, columns: int, widths: list[int]) -> None:
    """InputError unless the record's shapes are what config.json makes of layer `name`."""
    for part, width in zip(parts, widths, strict=True):
        ranks = part.rows // width  # among which its rows are divided; the others hold copies
        fits = part.rows % width == 0 and ranks > 0 and layer.tp_size % ranks == 0
        if part.columns != columns or not fits:
            raise InputError(
                f"{name}: its record says {[part.rows, part.columns]}, the model of config.json needs {columns} "
                f"columns and {width} rows for each of {layer.tp_size} tensor-parallel ranks",
                hint="config.json was changed, or belongs to another checkpoint",
            )


def own(layer: Any, name: str, tensor: Tensor) -> None:
    """A plain parameter: torch.compile takes no subclasses, and vLLM counts, offloads and puts to sleep parameters."""
    layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
