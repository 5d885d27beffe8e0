"""A weight tensor while vLLM loads it: only the columns that this rank needs, and only if it is what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.parameter import ModelWeightParameter

from ..errors import InputError
from .shards import Shard
from .slidesparse_record import QuantizedLinear


class StoredParameter(ModelWeightParameter):
    """[rows of this rank, columns of this rank] of one tensor of each fused linear, on top of each other.

    label: the tensor's name, with its module. stored: shape of each linear's tensor in the checkpoint. cuts: the
    columns of it that are wanted.
    """

    def __init__(self, *, label: str, stored: Sequence[tuple[int, int]], cuts: Sequence[slice], **kwargs: Any) -> None:
        super().__init__(input_dim=1, output_dim=0, **kwargs)
        self.label, self.stored, self.cuts = label, stored, cuts

    @classmethod
    def of(
        cls,
        kind: str,
        module: str,
        parts: Sequence[QuantizedLinear],
        shards: Sequence[Shard],
        shape: tuple[int, torch.dtype],
        weight_loader: Any,
    ) -> StoredParameter:
        """kind: weight, weight_packed or weight_meta. shape: rows of this rank, and the dtype of the codes."""
        rows, dtype = shape
        slid = [shard.pattern.slid_columns(shard.columns) for shard in shards]
        columns, cuts = {
            "weight": ([shard.columns for shard in shards], [slice(shard.start, shard.stop) for shard in shards]),
            "weight_packed": ([count // 2 for count in slid], [shard.values for shard in shards]),
            "weight_meta": ([count // 8 for count in slid], [shard.meta for shard in shards]),
        }[kind]
        width = max(cut.stop - cut.start for cut in cuts)
        return cls(
            label=f"{module}.{kind}",
            stored=[(part.rows, count) for part, count in zip(parts, columns, strict=True)],
            cuts=cuts,
            data=torch.empty(rows, width, dtype=torch.uint8 if kind == "weight_meta" else dtype),
            weight_loader=weight_loader,
        )

    def _wanted(self, loaded: Tensor, part: int = 0) -> Tensor:
        """The columns of a linear's tensor that this rank needs. InputError if it is not the tensor recorded."""
        if tuple(loaded.shape) != self.stored[part] or loaded.dtype != self.dtype:
            raise InputError(
                f"{self.label}: the checkpoint has {loaded.dtype} {list(loaded.shape)}, its record in config.json "
                f"needs {self.dtype} {list(self.stored[part])}",
                hint="the record and the weights do not belong together: convert the model again",
            )
        wanted = loaded[:, self.cuts[part]]
        missing = self.shape[1] - wanted.shape[1]
        if not missing:
            return wanted
        # A fused linear with a pattern of its own; what is added is cut off again when the pattern is known.
        return torch.nn.functional.pad(wanted.view(torch.uint8), (0, missing)).view(self.dtype)

    def load_column_parallel_weight(self, loaded_weight: Tensor) -> None:
        super().load_column_parallel_weight(self._wanted(loaded_weight))

    def load_row_parallel_weight(self, loaded_weight: Tensor) -> None:
        self._assert_and_load(self._wanted(loaded_weight))

    def load_merged_column_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        part = self._shard_id_as_int(kwargs["shard_id"])
        super().load_merged_column_weight(self._wanted(loaded_weight, part), **kwargs)

    def load_qkv_weight(self, loaded_weight: Tensor, **kwargs: Any) -> None:
        part = self._shard_id_as_int(kwargs["shard_id"])
        super().load_qkv_weight(self._wanted(loaded_weight, part), **kwargs)
