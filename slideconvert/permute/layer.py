"""Permutation of the channels of a decoder layer: the effect on its tensors.

In a 2:L pattern, the columns of a block compete. Some columns can move at no cost, because the preceding linear
produces them: the inner channels of the MLP in any order (columns of down_proj, rows of gate_proj and up_proj), and the
channels of a value head (columns of o_proj, rows and bias of v_proj) in one order for all query heads that read it.
Attention, RoPE, the activation function, RMSNorm and per-token scales do not depend on the order: the model computes
the same sums with their terms in another order, and a permutation needs no work at run time. All other columns are
channels of the residual stream, which all layers share.

Tensor parallelism works unchanged: the order is folded into both sides, so a channel moves to another shard with all of
its weights, and value channels stay in their head. As without a permutation, shards must consist of whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.architecture import FreeChannels, Producer


def permute_layer(tensors: dict[str, Tensor], channels: FreeChannels, order: Tensor) -> dict[str, Tensor]:
    """The tensors of a decoder layer with these channels in `order`.

    tensors: by name in the layer ("mlp.gate_proj.weight" [inner, hidden] …), of any dtype. order int64, either
    [inner]: new channel i is old channel order[i]; or [key_value_heads, head_dim]: new channel i of head k is its old
    channel order[k, i]. InputError if `order` is not a permutation, a weight is missing or a shape does not fit.
    """
    check_order(order, f"the order of the input of {channels.consumer}")
    needed = [
        f"{submodule}.weight" for submodule in (*(one.submodule for one in channels.producers), channels.consumer)
    ]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise InputError(f"the layer has no {missing[0]}", hint="the permutation belongs to another architecture")
    moved = dict(tensors)
    for name, tensor in tensors.items():
        submodule = name.rpartition(".")[0]
        producer = channels.producer(submodule)
        if producer:
            dimension, index = 0, producer_rows(producer, order, tensor.shape, name)
        elif channels.norm and submodule == channels.norm:
            dimension, index = 0, query_columns(order, channels.readers)
        elif name == f"{channels.consumer}.weight":
            dimension, index = 1, query_columns(order, channels.readers)
        else:
            continue
        if tensor.dim() <= dimension or tensor.shape[dimension] != len(index):
            raise InputError(f"{name} {list(tensor.shape)} cannot be permuted by an order of {len(index)} channels")
        moved[name] = tensor.index_select(dimension, index.to(tensor.device))
    return moved


def producer_rows(producer: Producer, order: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The order of the rows of a producer's tensor [rows, …], [rows] int64. InputError if the shape does not fit."""
    produced = query_columns(order, order.view(-1, order.shape[-1]).shape[0])
    first = (shape[0] if shape else 0) - producer.blocks * len(produced)
    if first < 0 or (first and not producer.others_first):
        raise InputError(f"{name} {list(shape)} cannot be permuted by an order of {len(produced)} channels")
    starts = first + len(produced) * torch.arange(producer.blocks, device=order.device)[:, None]
    return torch.cat([torch.arange(first, device=order.device), (starts + produced).flatten()])


def query_columns(order: Tensor, heads: int) -> Tensor:
    """order [key_value_heads, head_dim] -> the order of the columns of o_proj, [heads * head_dim] int64.

    Query head h reads key-value head h // (heads / key_value_heads); InputError if that ratio is not an integer. An
    order [inner] of the MLP is that of a single head.
    """
    order = order.view(-1, order.shape[-1])
    count, size = order.shape
    if heads % count:
        raise InputError(f"{heads} query heads cannot share {count} key-value heads", hint="check config.json")
    starts = size * torch.arange(heads, device=order.device)[:, None]
    return (order.repeat_interleave(heads // count, dim=0) + starts).flatten()


def check_order(order: Tensor, what: str) -> None:
    """InputError about `what` unless every row of order [..., n] is a permutation of 0 … n - 1."""
    natural = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    if not torch.equal(order.sort(dim=-1).values, natural):
        raise InputError(f"{what} {list(order.shape)} is not a permutation of 0 … {order.shape[-1] - 1}")
