"""Channel permutations in the running model: found when a layer's statistics are there, folded into its weights.

A stage whose linear may read its input in another order (o_proj, down_proj) has its columns ordered before it is
solved; the linears that make that input, solved already, only have their rows moved. The dense lane stays as it is: the
layer computes the same with either order.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..core.patterns import BlockPattern
from ..models.architecture import HEADS
from ..prune.statistics import Statistics
from .permutations import Permutations
from .search import head_order, mlp_order, permute_heads, permute_mlp


def find_order(
    part: str, weight: Tensor, statistics: Statistics, pattern: BlockPattern, heads: tuple[int, int]
) -> Tensor:
    """The order of o_proj's (HEADS) or down_proj's (MLP_INNER) input channels that makes pruning lose least.

    weight [N, K] float32; heads: query heads and key-value heads. Of the CPU, whatever computes.
    """
    norms = statistics.whole.norms
    if part == HEADS:
        return head_order(weight, norms, pattern, *heads).cpu()
    return mlp_order(weight, norms, pattern).cpu()


def fold(module: nn.Module, permutations: Permutations, heads: tuple[int, int]) -> None:
    """Permute the tensors of a decoder layer, in place of those that it has. Nothing to do without permutations."""
    tensors = dict(module.state_dict())
    for part, order in permutations.items():
        order = order.to(next(iter(tensors.values())).device)
        tensors = permute_heads(tensors, order, heads[0]) if part == HEADS else permute_mlp(tensors, order)
    if permutations:
        module.load_state_dict(tensors, assign=True)


def in_order(statistics: Statistics, order: Tensor) -> Statistics:
    """Statistics of the same input with its channels in another order [K]."""
    order = order.to(statistics.gram.device)

    def moved(matrix: Tensor | None) -> Tensor | None:
        return None if matrix is None else matrix[order[:, None], order]

    held = None if statistics.held is None else in_order(statistics.held, order)
    gram = moved(statistics.gram)
    assert gram is not None
    return replace(statistics, gram=gram, cross=moved(statistics.cross), held=held)
