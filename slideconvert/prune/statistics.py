"""What a calibrated method knows of a linear's input: second moments over calibration tokens.

With X [tokens, K] the input that the linear gets behind the layers already compressed, and X̃ the input that it
gets in the dense model, everything that the methods need of the tokens is in two K × K matrices. Siblings (q/k/v,
gate/up) read the same input and share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.precision import exact_for_bfloat16, full_precision


@dataclass(frozen=True)
class Statistics:
    """Means over `tokens` calibration tokens, float32.

    gram [K, K]: XᵀX / tokens.
    cross [K, K]: (X̃ - X)ᵀX / tokens, how far the compressed prefix has moved the input; None if not collected.
    held: the same over tokens that are in neither matrix, for decisions that must not overfit; None without any.
    diagonal: gram is zero outside its diagonal, because nobody asked for more; that of `held` is whole.
    """

    gram: Tensor
    cross: Tensor | None
    tokens: int
    held: Statistics | None = None
    diagonal: bool = False

    @property
    def judging(self) -> Tensor:
        """[K, K] the Gram matrix by which a linear's output is judged: over all tokens for which it is known."""
        return self.held.gram if self.diagonal and self.held else self.whole.gram

    @property
    def norms(self) -> Tensor:
        """[K] root mean square of each input: what Wanda calls ||X_j||, up to a factor common to all."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    @property
    def whole(self) -> Statistics:
        """Over all tokens, those held out included."""
        if self.held is None:
            return self
        tokens = self.tokens + self.held.tokens
        share = self.held.tokens / tokens
        cross = None
        if self.cross is not None and self.held.cross is not None:
            cross = torch.lerp(self.cross, self.held.cross, share)
        gram = torch.lerp(self.gram, self.held.gram, share)
        return Statistics(gram.diagonal().diag() if self.diagonal else gram, cross, tokens, diagonal=self.diagonal)

    def loss_of(self, weight: Tensor) -> Callable[[Tensor], float]:
        """weight [N, K] float32 -> other [N, K] -> mean squared error E ||other X - weight X̃||² (X̃ = X without cross).

        Summed over rows in float64, up to what the weight alone decides: losses can be compared, and be negative.
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
"""Columns of a block of the Gram matrix at least, and blocks in a row of it at most: products stay large enough."""


class Accumulator:
    """Collects Statistics batch by batch.

    cross: collect that too. diagonal: of the Gram matrix the diagonal alone, which takes hardly any time.
    """

    def __init__(self, columns: int, device: torch.device, *, cross: bool = False, diagonal: bool = False) -> None:
        self._diagonal = diagonal
        self._gram = torch.zeros(columns, columns, device=device)
        self._cross = torch.zeros(columns, columns, device=device) if cross else None
        self._step = max(LEAST_BLOCK, -(-columns // MOST_BLOCKS))
        self._tokens = 0

    def add(self, inputs: Tensor, dense: Tensor | None) -> None:
        """inputs, dense [tokens, K] float32 or bfloat16: X, and X̃ if cross is collected.

        Products of float32 inputs are float32. Those of bfloat16 inputs are exact; X̃ - X is rounded to what the device
        multiplies fast, bfloat16 at least: evenly up and down, and only in cross.
        """
        with exact_for_bfloat16() if inputs.dtype == torch.bfloat16 else full_precision():
            self._add(inputs.float(), None if dense is None else dense.float())
        self._tokens += len(inputs)

    def _add(self, inputs: Tensor, dense: Tensor | None) -> None:
        if self._diagonal:
            self._gram.diagonal().add_(inputs.square().sum(0))
            return
        for start in range(0, len(self._gram), self._step):
            # The matrix is symmetric: blocks on and above the diagonal are enough.
            rows = slice(start, start + self._step)
            self._gram[rows, start:].addmm_(inputs[:, rows].T, inputs[:, start:])
        if self._cross is not None and dense is not None:
            self._cross.addmm_((dense - inputs).T, inputs)

    def statistics(self, held: Statistics | None = None) -> Statistics:
        """The means. The accumulator is spent: its memory is theirs."""
        tokens = max(1, self._tokens)
        gram = self._gram.div_(tokens)
        gram = gram.triu_().add_(gram.triu(1).T)
        cross = None if self._cross is None else self._cross.div_(tokens)
        return Statistics(gram, cross, self._tokens, held, self._diagonal)
