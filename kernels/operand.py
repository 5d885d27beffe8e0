"""The form in which a product reads quantized activations: what a producer has to write for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .windows import WINDOW, group_of, lift_index, slid_columns


@dataclass(frozen=True)
class Operand:
    """Codes of activations [M, K = columns]: as they lie, or lifted into the windows of a slid weight.

    length: L of the windows' pattern, None for 2:inf; without a meaning if they are not lifted. blocks: of so many
    blocks of L columns all first windows lie together, then all second ones. multiple: what the width is padded to.
    """

    columns: int
    dtype: torch.dtype
    lifted: bool = False
    length: int | None = None
    blocks: int = 1
    multiple: int = 1

    @property
    def width(self) -> int:
        """Columns of the codes, padded: K' if they are lifted, else K."""
        own = slid_columns(self.columns, self.length) if self.lifted else self.columns
        return -(-own // self.multiple) * self.multiple

    def index(self, device: torch.device | str = "cpu") -> Tensor:
        """[width] int64: the column of each code, -1 where there is none."""
        own = (
            lift_index(self.columns, self.length, device) if self.lifted else torch.arange(self.columns, device=device)
        )
        padded = torch.nn.functional.pad(own, (0, self.width - len(own)), value=-1)
        if self.blocks == 1:
            return padded
        return padded.view(-1, self.blocks, group_of(self.length)[1], WINDOW).transpose(1, 2).flatten()

    def arranged(self, codes: Tensor) -> Tensor:
        """Codes [M, K] in the order of columns -> [M, width], 0 where there is no column."""
        index = self.index(codes.device)
        # Multiplied as bytes: float8 has no arithmetic, and padding must be +0.
        return (codes.view(torch.int8)[:, index.clamp(min=0)] * (index >= 0)).view(codes.dtype)
