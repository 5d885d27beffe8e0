"""The statistics of a linear's input that calibrated methods use: second moments over the calibration tokens.

X [tokens, K] is the input of the linear after the layers that are already compressed, X̃ its input in the dense model.
Two K × K matrices contain everything that the methods need of them. Linears that read the same input (q/k/v, gate/up)
share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ranks
from ..core.precision import exact_for_bfloat16, full_precision


@dataclass(frozen=True)
class Statistics:
    """Means over `tokens` calibration tokens, those that methods fit to, float32, up to a common factor of the inputs.

    gram [K, K]: XᵀX / tokens.
    cross [K, K]: (X̃ - X)ᵀX / tokens, by how much the compressed layers before change the input; None if not collected.
    held: the statistics of held-out tokens, which are in neither matrix, for decisions that must not overfit; or None.
    """

    gram: Tensor
    cross: Tensor | None
    tokens: int
    held: Statistics | None = None

    @property
    def blind(self) -> bool:
        """Whether every input is zero for every fitted token, so that the statistics say nothing."""
        return not bool(self.gram.diagonal().any())

    @property
    def norms(self) -> Tensor:
        """[K] float32: the root mean square of each input, which is Wanda's ||X_j|| up to a common factor."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    def loss_of(self, weight: Tensor) -> Callable[[Tensor], float]:
        """weight [N, K] float32 -> a function: other [N, K] -> E ||other X - weight X̃||² (X̃ = X without cross).

        The mean squared error per token, summed over rows in float64, without the constant that depends on `weight`
        alone. Losses of the same function can be compared; they may be negative.
        """
        moved = None if self.cross is None else weight @ self.cross

        def loss(other: Tensor) -> float:
            change = other - weight
            bent = change @ self.gram
            if moved is not None:
                bent.sub_(moved, alpha=2)
            return float((bent * change).sum(dtype=torch.float64))

        return loss


LEAST_BLOCK, MOST_BLOCKS = 128, 8
"""Minimum width of a block of the Gram matrix, and maximum number of blocks in a row: small products are slow."""


class Accumulator:
    """Accumulates Statistics batch by batch.

    cross: whether to collect `cross` as well. diagonal: whether to collect only the diagonal of the Gram matrix, which
    takes little time; the rest is zero. unit: a factor of all inputs, `core.weights.unit_of` some of them.
    """

    def __init__(
        self, columns: int, device: torch.device, *, cross: bool = False, diagonal: bool = False, unit: float = 1.0
    ) -> None:
        self._unit = unit
        self._diagonal = diagonal
        self._gram = torch.zeros(columns, columns, device=device)
        self._cross = torch.zeros(columns, columns, device=device) if cross else None
        self._step = max(LEAST_BLOCK, -(-columns // MOST_BLOCKS))
        self._tokens = 0

    def add(self, inputs: Tensor, dense: Tensor | None) -> None:
        """inputs, dense [tokens, K] float32 or bfloat16: X, and X̃ if cross is collected, else None.

        Products of float32 inputs are computed in float32; those of bfloat16 inputs are exact. In cross, X̃ - X may be
        rounded to the precision that the device multiplies fast (at least bfloat16); this rounding has no bias.
        """
        if self._unit != 1:
            inputs, dense = inputs * self._unit, None if dense is None else dense * self._unit
        with exact_for_bfloat16() if inputs.dtype == torch.bfloat16 else full_precision():
            self._add(inputs.float(), None if dense is None else dense.float())
        self._tokens += len(inputs)

    def _add(self, inputs: Tensor, dense: Tensor | None) -> None:
        if self._diagonal:
            self._gram.diagonal().add_(inputs.square().sum(0))
            return
        for start in range(0, len(self._gram), self._step):
            # The matrix is symmetric, so only the blocks on and above the diagonal are computed.
            rows = slice(start, start + self._step)
            self._gram[rows, start:].addmm_(inputs[:, rows].T, inputs[:, start:])
        if self._cross is not None and dense is not None:
            self._cross.addmm_((dense - inputs).T, inputs)

    def statistics(self, held: Statistics | None = None) -> Statistics:
        """The means over all batches of all ranks. Call it once: it reuses the memory of the accumulator."""
        (added,) = ranks.sums(self._tokens)
        tokens = max(1.0, added)
        gram = ranks.total(self._gram).div_(tokens)
        gram = gram.triu_().add_(gram.triu(1).T)
        cross = None if self._cross is None else ranks.total(self._cross).div_(tokens)
        return Statistics(gram, cross, int(added), held)
