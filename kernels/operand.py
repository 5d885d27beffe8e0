"""The form in which a product reads quantized activations: what a producer has to write for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .windows import slid_columns


@dataclass(frozen=True)
class Operand:
    """Codes of activations [M, K = columns]: as they lie, or lifted into the windows of a slid weight.

    length: L of the windows' pattern, None for 2:inf; without a meaning if they are not lifted.
    """

    columns: int
    dtype: torch.dtype
    lifted: bool = False
    length: int | None = None

    @property
    def width(self) -> int:
        """Columns of the codes: K' if they are lifted, else K."""
        return slid_columns(self.columns, self.length) if self.lifted else self.columns
