"""One (fused) linear with scales for groups of columns in vLLM, whatever part of it a tensor-parallel rank holds.

How many groups a rank holds is known only once they are there. So the tensors of the checkpoint are taken as they
arrive, cut to this rank's part as soon as those of one linear are complete, and put together when all are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.parameter import BasevLLMParameter

from ..errors import InputError
from ..kernels.group_backends import GROUP_BACKENDS, GroupBackend, GroupReference, choose_groups
from ..kernels.groups import SIZES, GroupSpec, Weight, weight_of
from .group_shards import Piece, cut, join
from .slidesparse_record import REINSTALL_HINT, SETTINGS, GroupedLinear, backend_for
from .vllm_linear import check_shapes, own

logger = init_logger(f"vllm.{__name__}")


class ArrivingParameter(BasevLLMParameter):
    """Stands for one tensor of every linear that is fused in a layer, and hands those that arrive to its method.

    weight_loader_numel: the elements that will arrive, by which vLLM knows when a layer is loaded again.
    """

    def __init__(self, *, method: GroupedLinearMethod, kind: str, elements: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method, self.kind, self.weight_loader_numel = method, kind, elements

    def _take(self, loaded: Tensor, part: int = 0) -> None:
        # Copied: some loaders use their buffers again. On the meta device vLLM only counts what is copied.
        held = torch.empty_like(loaded, device=self.device).copy_(loaded)
        if not self.is_meta:
            self.method.arrive(self.kind, part, held)

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        self._take(loaded_weight)

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        self._take(loaded_weight)

    def load_merged_column_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self._take(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))

    def load_qkv_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self._take(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))


@register_weight_loader_v2_supported_method
class GroupedLinearMethod(LinearMethodBase):
    """The linear on one of our backends for groups. vLLM has no kernels for absent groups, so there is no other way.

    name: the module's name. names, parts: the linears that are fused in it. wanted: auto, or the name of a backend.
    """

    def __init__(self, name: str, names: list[str], parts: list[GroupedLinear], wanted: str) -> None:
        self.name, self.names, self.parts = name, names, parts
        self.wanted = backend_for(wanted, GROUP_BACKENDS)
        self.specs = [self._spec(part) for part in parts]
        self.rows: list[slice] = []
        self.columns = slice(0)
        self.arrived: list[dict[str, Tensor]] = [{} for _ in parts]
        self.pieces: list[Piece | None] = [None for _ in parts]
        self.weight: tuple[GroupSpec, Weight] | None = None
        self.backend: GroupBackend | None = None

    def _spec(self, part: GroupedLinear) -> GroupSpec:
        """Of a whole linear, with the groups that its pattern keeps, whatever the layout."""
        words = (part.rows, part.columns, part.size, part.bits, part.kept, part.symmetric, part.activation_bits)
        try:
            return GroupSpec(*words)
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
        check_shapes(self.name, self.parts, layer, input_size, output_partition_sizes)
        ranks = input_size // input_size_per_partition
        self._check_width(ranks, input_size_per_partition)
        try:
            # Refused now if it cannot run here, not after minutes of loading.
            choose_groups(self.specs[0], self.parts[0].layout, torch.empty(0).device, self.wanted)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", hint=f"set the backend in {SETTINGS} to auto") from error
        first = (layer.tp_rank if ranks > 1 else 0) * input_size_per_partition
        self.columns = slice(first, first + input_size_per_partition)
        for part, width in zip(self.parts, output_partition_sizes, strict=True):
            # Fewer pieces than ranks: several ranks hold the same rows.
            start = layer.tp_rank * (part.rows // width) // layer.tp_size * width
            self.rows.append(slice(start, start + width))
        self.config, self.dtype = get_current_vllm_config(), params_dtype
        elements: dict[str, int] = {}
        for number in range(len(self.parts)):
            for kind, (shape, _) in self._tensors(number).items():
                elements[kind] = elements.get(kind, 0) + torch.Size(shape).numel()
        for kind, count in elements.items():
            parameter = ArrivingParameter(
                method=self, kind=kind, elements=count, data=torch.empty(0), weight_loader=weight_loader
            )
            layer.register_parameter(kind, parameter)

    def _tensors(self, number: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return self.specs[number].tensors(self.parts[number].layout)

    def _check_width(self, ranks: int, width: int) -> None:
        """InputError if a rank's columns are no whole groups."""
        size = self.parts[0].size
        if width % size:
            fits = [str(one) for one in SIZES if width % one == 0]
            other = f", or convert this layer in groups of {', '.join(fits)}" if fits else ""
            raise InputError(
                f"{self.name}: tensor parallelism over {ranks} ranks cuts its K = {self.parts[0].columns} columns into "
                f"{width}, no multiple of its group size {size}",
                hint=f"use fewer ranks (--tensor-parallel-size){other}",
            )

    def arrive(self, kind: str, number: int, tensor: Tensor) -> None:
        """One whole tensor of the linear of this number. InputError if it is not the tensor recorded, or damaged."""
        wanted = self._tensors(number).get(kind)
        if wanted != (tuple(tensor.shape), tensor.dtype):
            needs = f"needs {wanted[1]} {list(wanted[0])}" if wanted else "has no such tensor"
            raise InputError(
                f"{self.names[number]}.{kind}: the checkpoint has {tensor.dtype} {list(tensor.shape)}, its record in "
                f"config.json {needs}",
                hint="the record and the weights do not belong together: convert the model again",
            )
        arrived, part, spec = self.arrived[number], self.parts[number], self.specs[number]
        arrived[kind] = tensor
        if arrived.keys() != self._tensors(number).keys():
            return
        try:
            self.pieces[number] = cut(weight_of(arrived, part.layout), spec, self.rows[number], self.columns)
        except ValueError as error:
            raise InputError(f"{self.names[number]}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        self.arrived[number] = {}
        complete = [piece for piece in self.pieces if piece is not None]
        if len(complete) == len(self.pieces):
            self.weight = join(complete, spec)
            self.pieces = [None for _ in self.pieces]

    def process_weights_after_loading(self, layer: Any) -> None:
        """Turn what has arrived into what runs, and drop it. InputError if something has not."""
        if self.weight is None:
            missing = [
                f"{self.names[number]}.{kind}"
                for number, arrived in enumerate(self.arrived)
                if self.pieces[number] is None
                for kind in self._tensors(number)
                if kind not in arrived
            ]
            raise InputError(f"{self.name}: the checkpoint has no {', '.join(missing)}", hint=REINSTALL_HINT)
        (spec, weight), self.weight = self.weight, None
        layout = "dense" if spec.kept == spec.whole else "gqs"
        choice = choose_groups(spec, layout, weight.scale.device, self.wanted)
        operand = choice.backend.prepare(weight)
        self.backend = choice.backend
        for kind in [name for name, held in layer.named_parameters() if isinstance(held, ArrivingParameter)]:
            layer._parameters.pop(kind)
        own(layer, "operand", operand)
        if isinstance(choice.backend, GroupReference):
            # It unpacks the weight at its first call, which no compiler can follow.
            choice.backend(operand.new_zeros((1, spec.columns), dtype=self.dtype), operand, None)
        logger.info_once("SlideSparse groups on backend %s (%s)", choice.backend.name, choice.why)
        # Compiled graphs have the number of groups in them, and are cached by the hash of the configuration.
        if isinstance(self.config.additional_config, dict):
            chosen = self.config.additional_config.setdefault("slidesparse", {})
            chosen[self.name] = f"{choice.backend.name}, {spec.kept} groups"

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., K] -> [..., rows] of the same dtype."""
        assert self.backend is not None
        return self.backend(x, layer.operand, bias)
