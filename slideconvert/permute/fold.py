"""Channel permutations in the running model: found from the statistics of a layer, and folded into its weights.

Calibration permutes the columns of a linear whose input channels are free (o_proj, down_proj) before it solves the
linear; the linears that produce that input are solved already, and only their rows move. The dense stream keeps its
order: the layer computes the same function with either one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from ..core.patterns import Pattern
from ..models.architecture import FreeChannels
from ..prune.statistics import Statistics
from .layer import permute_layer
from .permutations import Permutations
from .search import find_order


def find_permutation(channels: FreeChannels, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Tensor:
    """The permutation of the consumer's input channels that minimizes the loss of pruning, int64 of channels.shape.

    weight [N, K] float32: of the consumer, on any device. The permutation is on the CPU.
    """
    owners = channels.shape[0] if len(channels.shape) > 1 else 1
    order = find_order(weight, statistics.norms, pattern, channels.readers, owners)
    return order.view(channels.shape).cpu()


def fold(module: nn.Module, permutations: Permutations, free: Mapping[str, FreeChannels]) -> None:
    """Replace the tensors of a decoder layer by permuted ones, if there are permutations."""
    tensors = dict(module.state_dict())
    for part, order in permutations.items():
        tensors = permute_layer(tensors, free[part], order.to(next(iter(tensors.values())).device))
    if permutations:
        module.load_state_dict(tensors, assign=True)


def in_order(statistics: Statistics, order: Tensor) -> Statistics:
    """Statistics of the same input with its channels in `order` [K] int64."""
    order = order.to(statistics.gram.device)

    def moved(matrix: Tensor | None) -> Tensor | None:
        return None if matrix is None else matrix[order[:, None], order]

    held = None if statistics.held is None else in_order(statistics.held, order)
    gram = moved(statistics.gram)
    assert gram is not None
    return replace(statistics, gram=gram, cross=moved(statistics.cross), held=held)
