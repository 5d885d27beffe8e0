"""The form in which a product reads quantized activations: what a producer has to write for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .quantize.reference import pad_rows
from .windows import WINDOW, group_of, lift_index, slid_columns

PIECE = 16
"""Codes of a token that lie together where those of several tokens are interleaved."""
WORDS = 4
"""Words of four columns in a block of codes that are not lifted."""


@dataclass(frozen=True)
class Operand:
    """Codes of activations [M, K = columns]: as they lie, or lifted into the windows of a slid weight.

    length: L of the windows' pattern, None for 2:inf; without a meaning if they are not lifted. blocks: of so many
    blocks of L columns all first windows lie together, then all second ones; if they are not lifted, of so many blocks
    of 16 columns all first words of four. multiple: what the width is padded to. interleaved: tokens whose pieces of 16
    codes lie together, then their next ones; 0 if every token has a row of its own. spare: scales behind those of the
    tokens that may be read, and mean nothing: their memory must be there.
    """

    columns: int
    dtype: torch.dtype
    lifted: bool = False
    length: int | None = None
    blocks: int = 1
    multiple: int = 1
    interleaved: int = 0
    spare: int = 0

    @property
    def width(self) -> int:
        """Columns of the codes, padded: K' if they are lifted, else K."""
        own = slid_columns(self.columns, self.length) if self.lifted else self.columns
        return -(-own // self.multiple) * self.multiple

    @property
    def pieces(self) -> int:
        """Of a token."""
        return self.width // PIECE

    def rows(self, tokens: int) -> int:
        """Rows in which the codes of so many tokens lie."""
        return self.pieces if self.interleaved else tokens

    def index(self, device: torch.device | str = "cpu") -> Tensor:
        """[width] int64: the column of each code, -1 where there is none."""
        own = (
            lift_index(self.columns, self.length, device) if self.lifted else torch.arange(self.columns, device=device)
        )
        padded = torch.nn.functional.pad(own, (0, self.width - len(own)), value=-1)
        if self.blocks == 1:
            return padded
        windows = group_of(self.length)[1] if self.lifted else WORDS
        return padded.view(-1, self.blocks, windows, WINDOW).transpose(1, 2).flatten()

    def arranged(self, codes: Tensor, rows: int) -> Tensor:
        """Codes [M, K] in the order of columns -> as they lie, 0 where there is no column: [rows, width], rows at least
        M; or [pieces, interleaved * 16], M at most `interleaved`."""
        index = self.index(codes.device)
        # Multiplied as bytes: float8 has no arithmetic, and padding must be +0.
        found = pad_rows(codes.view(torch.int8)[:, index.clamp(min=0)] * (index >= 0), self.interleaved or rows)
        if self.interleaved:
            found = found.view(self.interleaved, self.pieces, PIECE).transpose(0, 1).flatten(1)
        return found.view(codes.dtype)
