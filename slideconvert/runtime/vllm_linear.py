"""One (fused) linear of a SlideSparse checkpoint in vLLM, whatever part of it a tensor-parallel rank holds.

vllm_arriving.py makes this rank's weight of the tensors that are loaded, vllm_choice.py chooses what runs it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    ReplicatedLinear,
    RowParallelLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
)

from ..errors import InputError
from ..kernels.backends.base import Backend, Dtypes
from ..kernels.backends.choose import BackendChoice, Settings, backends_for, choose
from ..kernels.backends.ready import make_ready
from ..kernels.slide_spec import SlideSpec
from ..kernels.spec import LinearSpec
from ..kernels.specs import parse_spec
from .slidesparse_record import REINSTALL_HINT, RecordedLinear, RuntimeSettings
from .vllm_arriving import Arrival, ArrivingParameter, check_shapes
from .vllm_choice import choose_alike, obstacle, refused
from .vllm_stock import HOST, Stock, left_to_vllm

logger = init_logger(f"vllm.{__name__}")  # only what is below "vllm" comes out of vLLM's logging

W8A8 = (CompressedTensorsW8A8Int8, CompressedTensorsW8A8Fp8)


@register_weight_loader_v2_supported_method
class SlideSparseLinearMethod(LinearMethodBase):
    """The linear on the backend of our choice, or on vLLM's own dense kernels where those are chosen.

    name: the module's name. names, parts: the linears that are fused in it. stock: what vLLM would run the dense layout
    with, and does where nothing of ours can or gains: a layer in the dense layout is then left to it altogether.
    """

    def __init__(
        self, name: str, names: list[str], parts: list[RecordedLinear], asked: RuntimeSettings, stock: LinearMethodBase
    ) -> None:
        self.name, self.stock = name, stock
        specs = [self._spec(part) for part in parts]
        self.fuse = asked.fuse
        asked = asked.of(backends_for(type(specs[0]), HOST))
        self.settings = Settings(asked.backend, asked.memory, asked.measure)
        self.specs, self.arrival = specs, Arrival(name, names, specs)
        self.on_stock = False
        self.choice: BackendChoice | None = None
        self.backend: Backend | None = None

    def _spec(self, part: RecordedLinear) -> LinearSpec:
        try:
            return parse_spec(part.spec)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=REINSTALL_HINT) from error

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
        """Choose what runs the layer, now: not after minutes of loading, and before anything is compiled or captured.
        Then parameters without elements for what will arrive. InputError if it cannot be this layer's, or cannot run.
        """
        check_shapes(self.name, self.specs, input_size, output_partition_sizes, layer.tp_size)
        ranks = input_size // input_size_per_partition
        cuts = [slice(rank * input_size_per_partition, (rank + 1) * input_size_per_partition) for rank in range(ranks)]
        rows = []
        for spec, width in zip(self.specs, output_partition_sizes, strict=True):
            # Fewer pieces than ranks: several ranks hold the same rows.
            start = layer.tp_rank * (spec.rows // width) // layer.tp_size * width
            rows.append(slice(start, start + width))
        self.config = get_current_vllm_config()
        scheme = "" if isinstance(getattr(layer, "scheme", None), W8A8) else type(layer.scheme).__name__
        self._choose(obstacle(self.name, self.specs, scheme, cuts), sum(output_partition_sizes), cuts[0])
        if self.fuse is not False and not self.on_stock:
            fuse(self.config, asked=bool(self.fuse))
        self.arrival.expect(rows, cuts[layer.tp_rank if ranks > 1 else 0], apart=self.on_stock)
        if self.on_stock:
            create_stock = {
                "input_size_per_partition": input_size_per_partition,
                "output_partition_sizes": output_partition_sizes,
                "input_size": input_size,
                "output_size": output_size,
                "params_dtype": params_dtype,
                "weight_loader": weight_loader,
                **extra,
            }
            if self.specs[0].layout == "dense":
                layer.quant_method = self.stock
                self.stock.create_weights(layer, **create_stock)
                return
            with torch.device("meta"):  # what it holds is made of what arrives
                self.stock.create_weights(layer, **create_stock)
            del layer.weight, layer.weight_scale
        if isinstance(layer, ReplicatedLinear):
            weight_loader = ArrivingParameter.hand_over  # its own copies into the parameter, which has no elements
        for kind, count in self.arrival.elements.items():
            parameter = ArrivingParameter(
                arrival=self.arrival, kind=kind, elements=count, data=torch.empty(0), weight_loader=weight_loader
            )
            layer.register_parameter(kind, parameter)

    def _choose(self, reason: str, rows: int, columns: slice) -> None:
        """Choose for this shape; reason: why it cannot be any of ours, "" if it can."""
        layers = re.sub(r"\.\d+\.", ".*.", self.name)
        if reason:
            self.on_stock = True
            logger.warning_once("SlideSparse: %s runs on vLLM's dense kernels, not faster: %s", layers, reason)
            return
        spec, device = self.specs[0].resized(rows, columns.stop - columns.start), torch.empty(0).device
        why = left_to_vllm(spec, device, self.settings) if isinstance(spec, SlideSpec) else ""
        self.on_stock = bool(why)
        if not why:
            try:
                self.choice = choose_alike(spec, device, self.settings, HOST, get_tp_group())
            except ValueError as error:
                raise refused(self.name, error) from error
            self.on_stock, why = self.choice.backend.name == Stock.name, self.choice.why
        if self.on_stock:
            logger.info_once("SlideSparse: %s is left to vLLM's dense kernels (%s)", layers, why)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Turn what has arrived into what runs, and drop it. InputError if something has not, or is damaged."""
        whole = self.arrival.take()
        for kind in [name for name, held in layer.named_parameters() if isinstance(held, ArrivingParameter)]:
            layer._parameters.pop(kind)
        if isinstance(whole, dict):
            own(layer, "weight", whole["codes"])
            own(layer, "weight_scale", whole["scale"])
            self.stock.process_weights_after_loading(layer)
            return
        spec, weight = whole
        try:
            choice, prepared = make_ready(self._choice_for(spec), weight, self.settings, self._dtypes(layer), HOST)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        self.backend = choice.backend
        # vLLM's LoRA layers find the device by a tensor of this name.
        self.prepared = ["weight_packed", *(f"prepared_{number}" for number in range(1, len(prepared)))]
        for name, tensor in zip(self.prepared, prepared, strict=True):
            own(layer, name, tensor)
        logger.info_once("SlideSparse %s layout on backend %s (%s)", spec.layout, choice.backend.name, choice.why)
        # Compiled graphs have the spec in them, and are cached by the hash of the configuration.
        if isinstance(self.config.additional_config, dict):
            chosen = self.config.additional_config.setdefault("slidesparse", {})
            chosen[self.name] = f"{choice.backend.name}: {spec.text}"

    def _dtypes(self, layer: Any) -> Dtypes:
        """As in the forward of the layer: one rank alone adds the bias to sums that all ranks contribute to."""
        absent = layer.bias is None or layer.skip_bias_add or (isinstance(layer, RowParallelLinear) and layer.tp_rank)
        return Dtypes(layer.params_dtype, None if absent else layer.bias.dtype)

    def _choice_for(self, spec: LinearSpec) -> BackendChoice:
        """The choice of all ranks; of linears that differ by rank, as groups that are kept do, another of this rank."""
        device = self.arrival.device
        if self.choice is not None and (self.choice.backend.spec, self.choice.backend.device) == (spec, device):
            return self.choice
        try:
            return choose(spec, device, self.settings, HOST)
        except ValueError as error:
            raise refused(self.name, error) from error

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> [..., rows] of the same dtype."""
        if self.backend is None:
            out: Tensor = self.stock.apply(layer, x, bias)
            return out
        return self.backend(x, [layer._parameters[name] for name in self.prepared], bias)


def fuse(config: Any, *, asked: bool) -> None:
    """Have vLLM fuse norms and gates with the linears behind them. InputError if this vLLM has no place for that, and
    somebody asked."""
    try:
        from .vllm_fusion import install
    except ImportError as error:
        if asked:
            raise InputError(f"this vLLM takes no pass that fuses norms ({error})", hint="set fuse to false") from error
        return
    install(config, asked=asked)


def own(layer: Any, name: str, tensor: Tensor) -> None:
    """A plain parameter: torch.compile takes no subclasses, and vLLM counts, offloads and puts to sleep parameters."""
    layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
