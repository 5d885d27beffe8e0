"""Channel permutations in the running model: found when a layer's statistics are there, folded into its weights.

A stage whose linear may read its input in another order (o_proj, down_proj) has its columns ordered before it is
solved; the linears that make that input, solved already, only have their rows moved. The dense lane stays as it is: the
layer computes the same with either order.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..layers import ORDERED
from ..patterns import Pattern
from ..permute import head_order, mlp_order, permute_heads, permute_mlp, query_columns
from ..prune.statistics import Statistics
from ..quantize import Weight

HEADS, MLP_INNER = ORDERED
"""What of a layer can be ordered: the channels of its value heads, and the inner channels of its MLP."""

Orders = dict[str, Tensor]
"""The order of each part, int64: HEADS [key-value heads, head_dim], MLP_INNER [inner]; empty without permutations."""


def find_order(part: str, weight: Tensor, statistics: Statistics, pattern: Pattern, heads: tuple[int, int]) -> Tensor:
    """The order of o_proj's (HEADS) or down_proj's (MLP_INNER) input channels that makes pruning lose least.

    weight [N, K] float32; heads: query heads and key-value heads. Of the CPU, whatever computes.
    """
    norms = statistics.whole.norms
    if part == HEADS:
        return head_order(weight, norms, pattern, *heads).cpu()
    return mlp_order(weight, norms, pattern).cpu()


def columns(part: str, order: Tensor, heads: tuple[int, int]) -> Tensor:
    """What an order makes of the input columns of o_proj or down_proj, [K] int64."""
    return query_columns(order, heads[0]) if part == HEADS else order


def fold(module: nn.Module, orders: Orders, heads: tuple[int, int]) -> None:
    """Permute the tensors of a decoder layer, in place of those that it has. Nothing to do without orders."""
    tensors = dict(module.state_dict())
    for part, order in orders.items():
        order = order.to(next(iter(tensors.values())).device)
        tensors = permute_heads(tensors, order, heads[0]) if part == HEADS else permute_mlp(tensors, order)
    if orders:
        module.load_state_dict(tensors, assign=True)


def move(weight: Weight, order: Tensor, dimension: int) -> Weight:
    """Rows (0) or columns (1) of a weight in another order."""
    if isinstance(weight, Tensor):
        return weight.index_select(dimension, order.to(weight.device))
    order = order.to(weight.codes.device)
    scale = weight.scale.index_select(0, order) if dimension == 0 else weight.scale
    return replace(weight, codes=weight.codes.index_select(dimension, order), scale=scale)


def rows(part: str, order: Tensor) -> Tensor:
    """What an order makes of the rows of the linears that produce the channels, int64."""
    return query_columns(order, len(order)) if part == HEADS else order


def folded(place: str, weight: Weight, orders: Orders, heads: tuple[int, int]) -> Weight:
    """A source weight as it stands in the folded layer."""
    for part, order in orders.items():
        producers, consumer = ORDERED[part]
        if place in producers:
            weight = move(weight, rows(part, order), 0)
        elif place == consumer:
            weight = move(weight, columns(part, order, heads), 1)
    return weight


def folded_bias(place: str, bias: Tensor, orders: Orders) -> Tensor:
    """A source bias [N] as it stands in the folded layer."""
    for part, order in orders.items():
        if place in ORDERED[part][0]:
            bias = bias.index_select(0, rows(part, order))
    return bias


def in_order(statistics: Statistics, order: Tensor) -> Statistics:
    """Statistics of the same input with its channels in another order [K]."""
    order = order.to(statistics.gram.device)

    def moved(matrix: Tensor | None) -> Tensor | None:
        return None if matrix is None else matrix[order[:, None], order]

    held = None if statistics.held is None else in_order(statistics.held, order)
    gram = moved(statistics.gram)
    assert gram is not None
    return Statistics(gram, moved(statistics.cross), statistics.tokens, held)
