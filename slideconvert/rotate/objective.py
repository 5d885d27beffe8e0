"""What pruning loses in a rotated basis: the objective that rotations minimize.

Optimal Brain Surgeon: setting weight j of a row to zero, where the others compensate, costs w_j² / [H⁻¹]_jj, H the
Gram matrix of the inputs (damped). Pruning to a pattern removes the lowest of these costs in each block, and their sum
estimates its loss. In a basis where the input is x Q and the weight W Q, H⁻¹ becomes QᵀH⁻¹Q, of which only the diagonal
is needed: no matrix is inverted during the search. The estimate is piecewise smooth in Q; its gradient takes the set of
pruned weights as given. DenoiseRotator (arXiv 2505.23049) rotates to concentrate importance too, but minimizes the
entropy of scores, which knows no pattern.

The loss of each linear is relative to the energy of its output, tr(W H Wᵀ), which no rotation changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.patterns import BlockPattern
from ..core.precision import full_precision
from ..prune.sweep import damp
from .rotations import Blocks, Sides, for_readers, rotate_linear


@dataclass(frozen=True)
class InputGroup:
    """Linears of a layer that a rotation changes and that read the same input.

    weights: [N, K] float32 by submodule, the norm folded in where that moves. inverse: of the damped Gram matrix of the
    input, as `inverse_for` makes it. energies: tr(W H Wᵀ) of each linear, of the mean token, [linears] float64.
    """

    weights: Mapping[str, Tensor]
    inverse: Tensor
    energies: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors; `from_tensors` takes them in this order."""
        return [*self.weights.values(), self.inverse, self.energies]

    @classmethod
    def from_tensors(cls, submodules: Iterable[str], tensors: Iterator[Tensor]) -> InputGroup:
        """The group of these linears; takes from `tensors` as many as it has."""
        return cls({submodule: next(tensors) for submodule in submodules}, next(tensors), next(tensors))

    def to(self, device: str) -> InputGroup:
        """The group on a device."""
        return InputGroup.from_tensors(self.weights, (tensor.to(device) for tensor in self.tensors))


LayerProblem = Sequence[InputGroup]
"""The linears of a layer that a rotation changes, in order of data flow."""


def inverse_for(gram: Tensor, blocks: Tensor | None) -> Tensor:
    """The part of H⁻¹ that losses in any rotated basis need, float32.

    gram [K, K] float32. blocks [n, size, size]: of the rotation of the input -> the diagonal blocks [n, size, size] of
    the inverse; None for an input that is not rotated -> its diagonal [K].
    """
    with full_precision():
        damped = damp(gram)
        if blocks is None:
            return damped.inverse_diagonal
        inverse = torch.cholesky_inverse(damped.lower)
    size = blocks.shape[1]
    parts = inverse.view(len(inverse) // size, size, -1, size)
    return parts.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def rotated_diagonal(inverse: Tensor, blocks: Tensor | None) -> Tensor:
    """`inverse_for` a rotation, and its blocks -> the diagonal [K] of QᵀH⁻¹Q."""
    if blocks is None:
        return inverse
    return ((inverse @ blocks) * blocks).sum(1).flatten()


def linear_losses(problem: LayerProblem, sides: Mapping[str, Sides], layer: Blocks, pattern: BlockPattern) -> Tensor:
    """The estimated loss of each linear of a layer, relative to the energy of its output, [linears] float64; 0 for one
    without output. Its gradient takes the pruned weights as given. Nothing waits for the device."""
    weights, diagonals = [], []
    for group in problem:
        reads, columns = sides[next(iter(group.weights))].reads, next(iter(group.weights.values())).shape[1]
        blocks = for_readers(layer[reads], columns) if reads in layer else None
        diagonals += [rotated_diagonal(group.inverse, blocks)] * len(group.weights)
        weights += [rotate_linear(weight, sides[submodule], layer) for submodule, weight in group.weights.items()]
    pruned = _pruned(weights, diagonals, pattern)
    losses = [
        ((weight * mask).square().sum(0) / diagonal).sum()
        for weight, mask, diagonal in zip(weights, pruned, diagonals, strict=True)
    ]
    energies = torch.cat([group.energies for group in problem])
    return torch.stack(losses).double() / energies.masked_fill(energies <= 0, torch.inf)


@torch.no_grad()
def _pruned(weights: Sequence[Tensor], diagonals: Sequence[Tensor], pattern: BlockPattern) -> list[Tensor]:
    """The weights that the pattern prunes, by the costs w² / diagonal: masks [N, K] bool.

    Rows of equal length are selected at once: the many small kernels of a selection take a GPU longer to start than to
    run on one small linear.
    """
    alike: dict[int, list[int]] = {}
    for number, weight in enumerate(weights):
        alike.setdefault(weight.shape[1], []).append(number)
    found: dict[int, Tensor] = {}
    for columns, numbers in alike.items():
        rows = [len(weights[number]) for number in numbers]
        costs = weights[numbers[0]].new_empty(sum(rows), columns)
        for number, part in zip(numbers, costs.split(rows), strict=True):
            torch.div(weights[number].square(), diagonals[number], out=part)
        found.update(zip(numbers, (~pattern.select(costs)).split(rows), strict=True))
    return [found[number] for number in range(len(weights))]
