"""The tensors of a (fused) linear as vLLM's loader hands them over, until they are this rank's part of the weight.

How many groups a rank holds is known only when the weights are there. So each tensor of the checkpoint is kept whole
when it arrives; once those of one linear are complete, they are cut to this rank's part; and once all linears of a
layer are, their parts are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.parameter import BasevLLMParameter

from ..errors import InputError
from ..kernels.spec import LinearSpec, Part, TensorSpecs, stack
from .slidesparse_record import REINSTALL_HINT


class Arrival:
    """What has arrived of the linears that are fused in one. names, specs: of these linears."""

    def __init__(self, name: str, names: list[str], specs: list[LinearSpec]) -> None:
        self.name, self.names, self.specs = name, names, specs
        self.rows: list[slice] = []
        self.columns = slice(0)
        self.apart = False
        self.device = torch.device("cpu")
        self._arrived: list[dict[str, Tensor]] = [{} for _ in specs]
        self._parts: list[Part | None] = [None for _ in specs]
        self._whole: tuple[LinearSpec, Any] | Part | None = None

    def expect(self, rows: list[slice], columns: slice, *, apart: bool) -> None:
        """rows, columns: this rank's, of every linear. apart: whether codes and scales are wanted instead of a weight,
        which they need not be: patterns may differ, and columns cut blocks."""
        self.rows, self.columns, self.apart = rows, columns, apart

    @property
    def elements(self) -> dict[str, int]:
        """How many elements of each kind of tensor will arrive."""
        found: dict[str, int] = {}
        for spec in self.specs:
            for kind, (shape, _) in spec.tensors().items():
                found[kind] = found.get(kind, 0) + torch.Size(shape).numel()
        return found

    def arrive(self, kind: str, number: int, tensor: Tensor) -> None:
        """One whole tensor of the linear of this number. InputError if it is not the tensor recorded, or damaged."""
        name, arrived, wanted = self.names[number], self._arrived[number], self.specs[number].tensors()
        arrived[kind] = _checked(f"{name}.{kind}", wanted, kind, tensor)
        if arrived.keys() != wanted.keys():
            return
        try:
            self._parts[number] = self.specs[number].cut(arrived, self.rows[number], self.columns)
        except ValueError as error:
            raise InputError(f"{name}: {error}", hint=f"the file is damaged: {REINSTALL_HINT}") from error
        self._arrived[number] = {}
        complete = [part for part in self._parts if part is not None]
        if len(complete) == len(self._parts):
            # At once: grouped codes take several times as much memory before they are joined.
            self._whole = stack(complete) if self.apart else self.specs[0].join(complete)
            self.device = complete[0]["codes"].device
            self._parts = [None for _ in self._parts]

    def take(self) -> tuple[LinearSpec, Any] | Part:
        """The spec and weight of all, or their codes and scales; kept no longer. InputError if something is missing."""
        whole, self._whole = self._whole, None
        if whole is not None:
            return whole
        missing = [
            f"{name}.{kind}"
            for name, spec, arrived, part in zip(self.names, self.specs, self._arrived, self._parts, strict=True)
            for kind in spec.tensors()
            if part is None and kind not in arrived
        ]
        raise InputError(f"{self.name}: the checkpoint has no {', '.join(missing)}", hint=REINSTALL_HINT)


def _checked(label: str, wanted: TensorSpecs, kind: str, tensor: Tensor) -> Tensor:
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


class ArrivingParameter(BasevLLMParameter):
    """Stands for one tensor of every linear that is fused in a layer, and hands over those that arrive.

    weight_loader_numel: the elements that will arrive, by which vLLM knows when a layer is loaded again.
    """

    def __init__(self, *, arrival: Arrival, kind: str, elements: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arrival, self.kind, self.weight_loader_numel = arrival, kind, elements

    def hand_over(self, loaded: Tensor, part: int = 0) -> None:
        """One whole tensor, of the linear of this number."""
        # Copied: some loaders use their buffers again. On the meta device vLLM only counts what is copied.
        held = torch.empty_like(loaded, device=self.device).copy_(loaded)
        if not self.is_meta:
            self.arrival.arrive(self.kind, part, held)

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        self.hand_over(loaded_weight)

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        self.hand_over(loaded_weight)

    def load_merged_column_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self.hand_over(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))

    def load_qkv_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        self.hand_over(loaded_weight, self._shard_id_as_int(kwargs["shard_id"]))


def check_shapes(name: str, specs: Sequence[LinearSpec], columns: int, widths: list[int], ranks: int) -> None:
    """InputError unless the record's shapes are what config.json makes of a layer. columns: K; widths: the rows of each
    linear at one rank."""
    if len(widths) != len(specs):
        raise InputError(
            f"{name}: vLLM divides it into {len(widths)} linears, the checkpoint stores {len(specs)}",
            hint="run it in transformers: the vLLM plugin does not divide linears that are stored fused",
        )
    for spec, width in zip(specs, widths, strict=True):
        shares = spec.rows // width  # ranks among which its rows are divided; the others hold copies
        fits = spec.rows % width == 0 and shares > 0 and ranks % shares == 0
        if spec.columns != columns or not fits:
            raise InputError(
                f"{name}: its record says {[spec.rows, spec.columns]}, the model of config.json needs {columns} "
                f"columns and {width} rows for each of {ranks} tensor-parallel ranks",
                hint="config.json was changed, or belongs to another checkpoint",
            )
