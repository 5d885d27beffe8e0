"""One (fused) linear of a SlideSparse checkpoint in vLLM, whatever part of it a tensor-parallel rank holds.

How many groups a rank holds is known only when the weights are there. So each tensor of the checkpoint is kept whole
when it arrives; once those of one linear are complete, they are cut to this rank's part; and once all linears of a
layer are, their parts are joined.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    ReplicatedLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
)
from vllm.model_executor.parameter import BasevLLMParameter

from ..errors import InputError
from ..kernels.backends.base import Backend
from ..kernels.backends.choose import BackendChoice, backends_for, choose
from ..kernels.spec import LinearSpec, Part, TensorSpecs, stack
from ..kernels.specs import parse_spec
from .slidesparse_record import REINSTALL_HINT, SETTINGS, RecordedLinear, backend_for

logger = init_logger(f"vllm.{__name__}")  # only what is below "vllm" comes out of vLLM's logging

W8A8 = (CompressedTensorsW8A8Int8, CompressedTensorsW8A8Fp8)


class ArrivingParameter(BasevLLMParameter):
    """Stands for one tensor of every linear that is fused in a layer, and hands those that arrive to its method.

    weight_loader_numel: the elements that will arrive, by which vLLM knows when a layer is loaded again.
    """

    def __init__(self, *, method: SlideSparseLinearMethod, kind: str, elements: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method, self.kind, self.weight_loader_numel = method, kind, elements

    def hand_over(self, loaded: Tensor, part: int = 0) -> None:
        """One whole tensor, of the linear of this number."""
        # Copied: some loaders use their buffers again. On the meta device vLLM only counts what is copied.
        held = torch.empty_like(loaded, device=self.device).copy_(loaded)
        if not self.is_meta:
            self.method.arrive(self.kind, part, held)

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        self.hand_over(loaded_weight)

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        self.hand_over(loaded_weight)

    def load_merged_column_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self.hand_over(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))

    def load_qkv_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self.hand_over(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))


@register_weight_loader_v2_supported_method
class SlideSparseLinearMethod(LinearMethodBase):
    """The linear on one of our backends; on vLLM's own dense kernels where that cannot be (`_obstacle`).

    name: the module's name. names, parts: the linears that are fused in it. wanted: auto, or the name of a backend.
    stock: what vLLM would run the dense layout with.
    """

    def __init__(
        self, name: str, names: list[str], parts: list[RecordedLinear], wanted: str, stock: LinearMethodBase
    ) -> None:
        self.name, self.names, self.stock = name, names, stock
        self.specs = [self._spec(part) for part in parts]
        self.layout = self.specs[0].layout
        self.wanted = backend_for(wanted, backends_for(type(self.specs[0])))
        self.rows: list[slice] = []
        self.columns = slice(0)
        self.on_stock = False
        self.arrived: list[dict[str, Tensor]] = [{} for _ in parts]
        self.parts: list[Part | None] = [None for _ in parts]
        self.whole: tuple[LinearSpec, Any] | Part | None = None
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
        """Parameters without elements for what will arrive. InputError if it cannot be this layer's, or cannot run."""
        self._check_shapes(layer, input_size, output_partition_sizes)
        ranks = input_size // input_size_per_partition
        first = (layer.tp_rank if ranks > 1 else 0) * input_size_per_partition
        self.columns = slice(first, first + input_size_per_partition)
        self.rows = []
        for spec, width in zip(self.specs, output_partition_sizes, strict=True):
            # Fewer pieces than ranks: several ranks hold the same rows.
            start = layer.tp_rank * (spec.rows // width) // layer.tp_size * width
            self.rows.append(slice(start, start + width))
        self.config = get_current_vllm_config()
        obstacle = self._obstacle(layer, ranks)
        self.on_stock = bool(obstacle)
        if obstacle:
            layers = re.sub(r"\.\d+\.", ".*.", self.name)
            logger.warning_once("SlideSparse: %s runs on vLLM's dense kernels, not faster: %s", layers, obstacle)
            create_stock = {
                "input_size_per_partition": input_size_per_partition,
                "output_partition_sizes": output_partition_sizes,
                "input_size": input_size,
                "output_size": output_size,
                "params_dtype": params_dtype,
                "weight_loader": weight_loader,
                **extra,
            }
            if self.layout == "dense":
                self.stock.create_weights(layer, **create_stock)
                return
            with torch.device("meta"):  # what it holds is made of what arrives
                self.stock.create_weights(layer, **create_stock)
            del layer.weight, layer.weight_scale
        else:
            # Refused now if it cannot run here, not after minutes of loading.
            own_shape = self.specs[0].resized(sum(output_partition_sizes), input_size_per_partition)
            self._choose(own_shape, torch.empty(0).device)
        if isinstance(layer, ReplicatedLinear):
            weight_loader = ArrivingParameter.hand_over  # its own copies into the parameter, which has no elements
        elements: dict[str, int] = {}
        for spec in self.specs:
            for kind, (shape, _) in spec.tensors().items():
                elements[kind] = elements.get(kind, 0) + torch.Size(shape).numel()
        for kind, count in elements.items():
            parameter = ArrivingParameter(
                method=self, kind=kind, elements=count, data=torch.empty(0), weight_loader=weight_loader
            )
            layer.register_parameter(kind, parameter)

    def _check_shapes(self, layer: Any, columns: int, widths: list[int]) -> None:
        """InputError unless the record's shapes are what config.json makes of the layer."""
        if len(widths) != len(self.specs):
            raise InputError(
                f"{self.name}: vLLM divides it into {len(widths)} linears, the checkpoint stores {len(self.specs)}",
                hint="run it in transformers: the vLLM plugin does not divide linears that are stored fused",
            )
        for spec, width in zip(self.specs, widths, strict=True):
            ranks = spec.rows // width  # among which its rows are divided; the others hold copies
            fits = spec.rows % width == 0 and ranks > 0 and layer.tp_size % ranks == 0
            if spec.columns != columns or not fits:
                raise InputError(
                    f"{self.name}: its record says {[spec.rows, spec.columns]}, the model of config.json needs "
                    f"{columns} columns and {width} rows for each of {layer.tp_size} tensor-parallel ranks",
                    hint="config.json was changed, or belongs to another checkpoint",
                )

    def _obstacle(self, layer: Any, ranks: int) -> str:
        """Why our backends cannot run this layer and vLLM's dense kernels do, with the way out; "" if ours can.
        InputError if neither can."""
        spec = self.specs[0]
        plain = spec.plain
        patterns = sorted({spec.pattern for spec in self.specs})
        if plain and len(patterns) > 1:
            return f"the linears fused in it have patterns {', '.join(patterns)}; convert with one pattern for all"
        if plain and not isinstance(layer.scheme, W8A8):
            return f"vLLM runs this scheme as {type(layer.scheme).__name__} on this device"
        misfit = spec.misfit(self.columns)
        if misfit is None:
            return ""
        reason, other = misfit
        what = (
            f"tensor parallelism over {ranks} ranks cuts its K = {spec.columns} columns into "
            f"{self.columns.stop - self.columns.start}, {reason}"
        )
        if plain:
            return f"{what}; use fewer ranks, or {other}"
        raise InputError(f"{self.name}: {what}", hint=f"use fewer ranks (--tensor-parallel-size), or {other}")

    def _choose(self, spec: LinearSpec, device: torch.device) -> BackendChoice:
        try:
            return choose(spec, device, self.wanted)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"set the backend in {SETTINGS} to auto") from error

    def arrive(self, kind: str, number: int, tensor: Tensor) -> None:
        """One whole tensor of the linear of this number. InputError if it is not the tensor recorded, or damaged."""
        name, arrived, wanted = self.names[number], self.arrived[number], self.specs[number].tensors()
        arrived[kind] = self._checked(f"{name}.{kind}", wanted, kind, tensor)
        if arrived.keys() != wanted.keys():
            return
        try:
            self.parts[number] = self.specs[number].cut(arrived, self.rows[number], self.columns)
        except ValueError as error:
            raise InputError(f"{name}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        self.arrived[number] = {}
        complete = [part for part in self.parts if part is not None]
        if len(complete) == len(self.parts):
            # At once: grouped codes take several times as much memory before they are joined.
            self.whole = stack(complete) if self.on_stock else self.specs[0].join(complete)
            self.device = complete[0]["codes"].device
            self.parts = [None for _ in self.parts]

    def _checked(self, label: str, wanted: TensorSpecs, kind: str, tensor: Tensor) -> Tensor:
        shape, dtype = wanted.get(kind, ((), None))
        if dtype == torch.float32 and tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        if (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
            needs = f"needs {dtype} {list(shape)}" if dtype else "has no such tensor"
            raise InputError(
                f"{label}: the checkpoint has {tensor.dtype} {list(tensor.shape)}, its record in config.json {needs}",
                hint="the record and the weights do not belong together: convert the model again",
            )
        return tensor

    def process_weights_after_loading(self, layer: Any) -> None:
        """Turn what has arrived into what runs, and drop it. InputError if something has not, or is damaged."""
        if self.on_stock and self.layout == "dense":
            self.stock.process_weights_after_loading(layer)
            return
        self._check_complete()
        whole, self.whole = self.whole, None
        for kind in [name for name, held in layer.named_parameters() if isinstance(held, ArrivingParameter)]:
            layer._parameters.pop(kind)
        if isinstance(whole, dict):
            own(layer, "weight", whole["codes"])
            own(layer, "weight_scale", whole["scale"])
            self.stock.process_weights_after_loading(layer)
            return
        assert whole is not None
        spec, weight = whole
        choice = self._choose(spec, self.device)
        try:
            prepared = choice.backend.prepare(weight)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        self.backend = choice.backend
        self.prepared = [f"prepared_{number}" for number in range(len(prepared))]
        for name, tensor in zip(self.prepared, prepared, strict=True):
            own(layer, name, tensor)
        logger.info_once("SlideSparse %s layout on backend %s (%s)", self.layout, choice.backend.name, choice.why)
        # Compiled graphs have the spec in them, and are cached by the hash of the configuration.
        if isinstance(self.config.additional_config, dict):
            chosen = self.config.additional_config.setdefault("slidesparse", {})
            chosen[self.name] = f"{choice.backend.name}: {spec.text}"

    def _check_complete(self) -> None:
        """InputError if there are tensors that have not arrived."""
        if self.whole is not None:
            return
        missing = [
            f"{name}.{kind}"
            for name, spec, arrived, part in zip(self.names, self.specs, self.arrived, self.parts, strict=True)
            for kind in spec.tensors()
            if part is None and kind not in arrived
        ]
        raise InputError(f"{self.name}: the checkpoint has no {', '.join(missing)}", hint=REINSTALL_HINT)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> [..., rows] of the same dtype."""
        if self.backend is None:
            out: Tensor = self.stock.apply(layer, x, bias)
            return out
        return self.backend(x, [layer._parameters[name] for name in self.prepared], bias)


def own(layer: Any, name: str, tensor: Tensor) -> None:
    """A plain parameter: torch.compile takes no subclasses, and vLLM counts, offloads and puts to sleep parameters."""
    layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
