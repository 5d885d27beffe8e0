"""The permutations that conversions have folded into the weights of each layer: kept, composed and undone.

They are kept beside the weights in channel_orders.json, so that a weight can be found again in the source:
{"0": {"heads": [[…], …], "inner": […]}, …}, by decoder layer; new channel i is old channel order[i]. A chain of
conversions composes them: the file counts from the first source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.files import CHANNEL_ORDERS
from ..checkpoint.reader import Checkpoint, read_json
from ..core.quantize import Weight
from ..errors import InputError
from ..models.architecture import HEADS, MLP_INNER, FreeChannels
from ..models.families import architecture_of
from .layer import check_order, producer_rows, query_columns

REINSTALL_HINT = "get the checkpoint again"
PARTS = {HEADS: 2, MLP_INNER: 1}
"""What can be permuted, with the number of dimensions of its order."""

Permutations = dict[str, Tensor]
"""The order of each part of a layer, int64: HEADS [key-value heads, head_dim], MLP_INNER [inner]; empty if none."""
Free = Mapping[str, FreeChannels]
"""The channels of a layer that can be permuted, by part (Architecture.free_channels)."""


def move(weight: Weight, order: Tensor, dimension: int) -> Weight:
    """Rows (0) or columns (1) of a weight in another order; as floats where columns leave the groups that share a
    scale. InputError if it does not fit."""
    matrix = weight if isinstance(weight, Tensor) else weight.codes
    if len(order) != matrix.shape[dimension]:
        raise InputError(f"an order of {len(order)} channels does not fit a weight {list(matrix.shape)}")
    order = order.to(matrix.device)
    if isinstance(weight, Tensor):
        return weight.index_select(dimension, order)
    return weight.permute_columns(order) if dimension == 1 else weight.permute_rows(order)


def permute_weight(submodule: str, weight: Weight, permutations: Permutations, free: Free) -> Weight:
    """The weight of the linear at `submodule` as it stands in the permuted layer."""
    for part, order in permutations.items():
        producer = free[part].producer(submodule)
        if producer:
            shape = (weight if isinstance(weight, Tensor) else weight.codes).shape
            weight = move(weight, producer_rows(producer, order, shape, submodule), 0)
        elif submodule == free[part].consumer:
            weight = move(weight, query_columns(order, free[part].readers), 1)
    return weight


def permute_vector(name: str, vector: Tensor, permutations: Permutations, free: Free) -> Tensor:
    """A tensor [n] of a layer, self_attn.v_proj.bias or mlp.ffn_sub_norm.weight, as it stands in the permuted layer."""
    submodule = name.rpartition(".")[0]
    for part, order in permutations.items():
        producer = free[part].producer(submodule)
        if producer:
            vector = vector.index_select(0, producer_rows(producer, order, vector.shape, name).to(vector.device))
        elif submodule == free[part].norm:
            vector = vector.index_select(0, query_columns(order, free[part].readers).to(vector.device))
    return vector


def vectors_beside(submodule: str, free: Free) -> tuple[str, ...]:
    """The tensors [n] of a layer that move with the linear at `submodule`, where the layer has them."""
    norms = [channels.norm for channels in free.values() if channels.norm and submodule == channels.consumer]
    return (f"{submodule}.bias", *(f"{norm}.weight" for norm in norms))


def compose(first: Permutations, then: Permutations) -> Permutations:
    """One order for two, the second found on what the first had made."""
    both = {part: first[part].gather(-1, then[part]) for part in first.keys() & then.keys()}
    return {part: both.get(part, (first | then)[part]) for part in PARTS if part in first or part in then}


def compose_all(first: Mapping[int, Permutations], then: Mapping[int, Permutations]) -> dict[int, Permutations]:
    """`compose` for every layer that either of them permutes."""
    layers = sorted(first.keys() | then.keys())
    found = {layer: compose(first.get(layer, {}), then.get(layer, {})) for layer in layers}
    return {layer: permutations for layer, permutations in found.items() if permutations}


def between(theirs: Mapping[int, Permutations], ours: Mapping[int, Permutations]) -> dict[int, Permutations]:
    """The orders that lead from one checkpoint to another, by layer; of both those since the first source are given."""
    back = {layer: {part: order.argsort(-1) for part, order in parts.items()} for layer, parts in theirs.items()}
    return compose_all(back, ours)


def to_json(permutations: Mapping[int, Permutations]) -> str:
    """The content of channel_orders.json, a line for each layer."""
    lines = [
        f'"{layer}": {json.dumps({part: order.tolist() for part, order in parts.items()}, separators=(",", ":"))}'
        for layer, parts in sorted(permutations.items())
    ]
    return "{" + ",\n".join(lines) + "}\n"


def read_permutations(checkpoint: Checkpoint) -> dict[int, Permutations]:
    """The orders of a checkpoint by layer, {} if it has no such file. InputError for one that cannot be right."""
    path = checkpoint.path / CHANNEL_ORDERS
    if not path.is_file():
        return {}
    found = read_json(path)
    numbers = {str(number) for number in range(checkpoint.config["num_hidden_layers"])}
    if found.keys() - numbers:
        raise InputError(f"{path}: the model has no layer {min(found.keys() - numbers)}", hint=REINSTALL_HINT)
    permutations = {int(layer): parse_permutations(parts, f"{path}: layer {layer}") for layer, parts in found.items()}
    free = architecture_of(checkpoint.config).free_channels(checkpoint.config)
    for layer, parts in permutations.items():
        for part, order in parts.items():
            wanted = free[part].shape if part in free else ()
            if order.shape != wanted:
                raise InputError(
                    f"{path}: layer {layer}: {list(order.shape)} channels of {part}, the model has {list(wanted)}",
                    hint=REINSTALL_HINT,
                )
    return permutations


def parse_permutations(parts: Any, where: str) -> Permutations:
    """The orders of a layer from JSON. InputError for what is none."""
    try:
        permutations = {part: torch.tensor(order) for part, order in parts.items()}
        fits = all(order.dtype == torch.int64 and order.dim() == PARTS[part] for part, order in permutations.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: unreadable orders ({error!r})", hint=REINSTALL_HINT) from error
    if not fits:
        raise InputError(f"{where}: orders are lists of whole numbers", hint=REINSTALL_HINT)
    for part, order in permutations.items():
        check_order(order, f"{where}: the order of {part}")
    return permutations
