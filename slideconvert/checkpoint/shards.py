"""The division of a model's tensors into weight files, and the index of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .container import ITEM_BYTES, TensorSpec
from .files import SINGLE
from .writer import Shard, Unit


def divide(specs: Iterable[TensorSpec], layer_of: Callable[[str], int | None], limit: int) -> tuple[Shard, ...]:
    """Order all tensors by unit (those outside the layers first) and divide the units into files of at most `limit`
    bytes; a larger unit gets a file of its own. layer_of: the decoder layer of a tensor, by name."""
    by_unit: dict[int | None, list[TensorSpec]] = {}
    for spec in specs:
        by_unit.setdefault(layer_of(spec.name), []).append(spec)
    units = []
    for layer in sorted(by_unit, key=lambda number: -1 if number is None else number):
        # Widest items first, so that every tensor starts at a multiple of its item size.
        ordered = sorted(by_unit[layer], key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name))
        units.append(Unit("outside" if layer is None else f"layer {layer}", tuple(ordered)))
    files: list[list[Unit]] = [[]]
    for unit in units:
        size = sum(held.bytes for held in files[-1])
        misaligned = size % max(ITEM_BYTES[spec.dtype] for spec in unit.tensors)
        if files[-1] and (size + unit.bytes > limit or misaligned):
            files.append([])
        files[-1].append(unit)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    return tuple(
        Shard(name, tuple(units)) for name, units in zip(names if len(files) > 1 else [SINGLE], files, strict=True)
    )


def index_json(shards: Sequence[Shard]) -> dict[str, Any] | None:
    """The content of model.safetensors.index.json; None when one file holds everything."""
    if len(shards) == 1:
        return None
    weight_map = {spec.name: shard.file for shard in shards for spec in shard.tensors}
    size = sum(unit.bytes for shard in shards for unit in shard.units)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
