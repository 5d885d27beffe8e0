"""The permutations that conversions have folded into the weights of each layer: storage, composition and inverse.

channel_orders.json beside the weights stores them, so that `verify` can map a weight to the source:
{"0": {"heads": [[…], …], "inner": […]}, …}, by decoder layer; new channel i is old channel order[i]. A chain of
conversions composes them: the file is relative to the first source.
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

RESTORE_HINT = "download or copy the checkpoint again"
PARTS = {HEADS: 2, MLP_INNER: 1}
"""The parts of a layer that can be permuted, with the number of dimensions of their orders."""

Permutations = dict[str, Tensor]
"""The order of each part of a layer, int64: HEADS [key-value heads, head_dim], MLP_INNER [inner]; empty if none."""
Free = Mapping[str, FreeChannels]
"""The channels of a layer that can be permuted, by part (Architecture.free_channels)."""


def move(weight: Weight, order: Tensor, dimension: int) -> Weight:
    """The weight with its rows (dimension 0) or columns (1) in `order` [n] int64; floats if columns leave the groups
    that share a scale. InputError if the length does not fit."""
    matrix = weight if isinstance(weight, Tensor) else weight.codes
    if len(order) != matrix.shape[dimension]:
        raise InputError(f"an order of {len(order)} channels does not fit a weight {list(matrix.shape)}")
    order = order.to(matrix.device)
    if isinstance(weight, Tensor):
        return weight.index_select(dimension, order)
    return weight.permute_columns(order) if dimension == 1 else weight.permute_rows(order)


def permute_weight(submodule: str, weight: Weight, permutations: Permutations, free: Free) -> Weight:
    """The weight of the linear at `submodule` in the permuted layer."""
    for part, order in permutations.items():
        producer = free[part].producer(submodule)
        if producer:
            shape = (weight if isinstance(weight, Tensor) else weight.codes).shape
            weight = move(weight, producer_rows(producer, order, shape, submodule), 0)
        elif submodule == free[part].consumer:
            weight = move(weight, query_columns(order, free[part].readers), 1)
    return weight


def permute_vector(name: str, vector: Tensor, permutations: Permutations, free: Free) -> Tensor:
    """A vector [n] of a layer, such as self_attn.v_proj.bias or mlp.ffn_sub_norm.weight, in the permuted layer."""
    submodule = name.rpartition(".")[0]
    for part, order in permutations.items():
        producer = free[part].producer(submodule)
        if producer:
            vector = vector.index_select(0, producer_rows(producer, order, vector.shape, name).to(vector.device))
        elif submodule == free[part].norm:
            vector = vector.index_select(0, query_columns(order, free[part].readers).to(vector.device))
    return vector


def vectors_beside(submodule: str, free: Free) -> tuple[str, ...]:
    """Names of the vectors [n] that a permutation moves with the linear at `submodule`, if the layer has them."""
    norms = [channels.norm for channels in free.values() if channels.norm and submodule == channels.consumer]
    return (f"{submodule}.bias", *(f"{norm}.weight" for norm in norms))


def compose(first: Permutations, then: Permutations) -> Permutations:
    """The permutation that applies `first`, then `then`."""
    both = {part: first[part].gather(-1, then[part]) for part in first.keys() & then.keys()}
    return {part: both.get(part, (first | then)[part]) for part in PARTS if part in first or part in then}


def compose_all(first: Mapping[int, Permutations], then: Mapping[int, Permutations]) -> dict[int, Permutations]:
    """`compose` for every layer in either mapping."""
    layers = sorted(first.keys() | then.keys())
    found = {layer: compose(first.get(layer, {}), then.get(layer, {})) for layer in layers}
    return {layer: permutations for layer, permutations in found.items() if permutations}


def between(theirs: Mapping[int, Permutations], ours: Mapping[int, Permutations]) -> dict[int, Permutations]:
    """The permutations from one checkpoint to another, by layer. Both arguments are relative to the first source."""
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
    """The permutations of a checkpoint by layer, {} if it has none. InputError unless they fit the model."""
    path = checkpoint.path / CHANNEL_ORDERS
    if not path.is_file():
        return {}
    found = read_json(path)
    numbers = {str(number) for number in range(checkpoint.config["num_hidden_layers"])}
    if found.keys() - numbers:
        raise InputError(f"{path}: the model has no layer {min(found.keys() - numbers)}", hint=RESTORE_HINT)
    permutations = {int(layer): parse_permutations(parts, f"{path}: layer {layer}") for layer, parts in found.items()}
    free = architecture_of(checkpoint.config).free_channels(checkpoint.config)
    for layer, parts in permutations.items():
        for part, order in parts.items():
            wanted = free[part].shape if part in free else ()
            if order.shape != wanted:
                raise InputError(
                    f"{path}: layer {layer}: {list(order.shape)} channels of {part}, but the model has {list(wanted)}",
                    hint=RESTORE_HINT,
                )
    return permutations


def parse_permutations(parts: Any, where: str) -> Permutations:
    """The permutations of a layer from JSON. InputError for other content."""
    try:
        permutations = {part: torch.tensor(order) for part, order in parts.items()}
        fits = all(order.dtype == torch.int64 and order.dim() == PARTS[part] for part, order in permutations.items())
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # torch has its own
        raise InputError(f"{where}: unreadable orders ({error!r})", hint=RESTORE_HINT) from error
    if not fits:
        raise InputError(f"{where}: orders must be lists of integers", hint=RESTORE_HINT)
    for part, order in permutations.items():
        check_order(order, f"{where}: the order of {part}")
    return permutations
