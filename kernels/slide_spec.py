"""Linears of a 2:L pattern with a scale per row, INT8 or FP8: their tensors, weight, text and share of a rank.

Layout slide, K' being the columns of the slid weight (windows.py):

    weight_packed  [N, K'/2]        two values of every window of four
    weight_meta    [N, K'/8] uint8  their positions
    weight_scale   [N, 1] float32

Layout dense:

    weight         [N, K]
    weight_scale   [N, 1] float32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .spec import LinearSpec, Part, TensorSpecs, check_tensors, stack
from .windows import group_of, pack, slid_columns, slide, unpack, unslide

LAYOUTS = ("slide", "dense")
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""The dtype of codes by its word."""
WORDS = {dtype: word for word, dtype in CODES.items()}


@dataclass(frozen=True)
class SlideSpec(LinearSpec):
    """A linear of N = rows, K = columns, L of 2:L (None for 2:inf), and the dtype of its codes.

    ValueError if there is no such linear.
    """

    kind = "slide"
    plain = True

    rows: int
    columns: int
    length: int | None
    dtype: torch.dtype
    layout: str = "slide"

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}, known: {', '.join(LAYOUTS)}")

    @property
    def slid(self) -> int:
        """K', the columns of the slid weight."""
        return slid_columns(self.columns, self.length)

    @property
    def pattern(self) -> str:
        return f"2:{self.length or 'inf'}"

    @property
    def block(self) -> int:
        """L, the columns of a block; 2 of 2:inf."""
        return group_of(self.length)[0]

    @property
    def text(self) -> str:
        return f"{self.kind} {self.rows} {self.columns} {self.length or 'inf'} {WORDS[self.dtype]} {self.layout}"

    @classmethod
    def from_words(cls, words: Sequence[str]) -> SlideSpec:
        rows, columns, length, codes, layout = words
        return cls(int(rows), int(columns), None if length == "inf" else int(length), CODES[codes], layout)

    def tensors(self) -> TensorSpecs:
        scale: TensorSpecs = {"weight_scale": ((self.rows, 1), torch.float32)}
        if self.layout == "dense":
            return {"weight": ((self.rows, self.columns), self.dtype), **scale}
        return {
            "weight_packed": ((self.rows, self.slid // 2), self.dtype),
            "weight_meta": ((self.rows, self.slid // 8), torch.uint8),
            **scale,
        }

    def weight(self, named: Mapping[str, Tensor]) -> SlideWeight:
        check_tensors(self, named)
        if self.layout == "dense":
            return SlideWeight(self, named["weight_scale"], dense=named["weight"])
        slid = unpack(named["weight_packed"], named["weight_meta"])
        weight = SlideWeight(self, named["weight_scale"], slid=slid)
        _ = weight.dense  # ValueError if a column stands in two windows: a backend would add the two up
        return weight

    def resized(self, rows: int, columns: int) -> SlideSpec:
        return replace(self, rows=rows, columns=columns)

    def random(self, device: torch.device) -> SlideWeight:
        block, windows = group_of(self.length)
        codes = torch.randint(1, 100, (self.rows, -(-self.columns // block), block), dtype=torch.int8, device=device)
        codes[..., 2 * windows :] = 0
        dense = codes.flatten(1)[:, : self.columns].contiguous().view(self.dtype)
        scale = torch.ones(self.rows, 1, dtype=torch.float32, device=device)
        return SlideWeight(self, scale, dense=dense)

    def misfit(self, columns: slice) -> tuple[str, str] | None:
        # The last block may be ragged.
        if columns.start % self.block == 0 and (columns.stop % self.block == 0 or columns.stop == self.columns):
            return None
        reason = f"no multiple of L = {self.block} of its pattern {self.pattern}"
        return reason, "convert this layer with a pattern whose L divides it"

    def cut(self, named: Mapping[str, Tensor], rows: slice, columns: slice) -> Part:
        """codes [n, k] and scale [n, 1], also of columns that do not fit."""
        own = {name: tensor[rows] for name, tensor in named.items()}
        weight = replace(self, rows=rows.stop - rows.start).weight(own)
        return {"codes": weight.dense[:, columns].contiguous(), "scale": weight.scale}

    def join(self, parts: Sequence[Part]) -> tuple[SlideSpec, SlideWeight]:
        whole = stack(parts)
        rows, columns = whole["codes"].shape
        spec = replace(self, rows=rows, columns=columns)
        return spec, SlideWeight(spec, whole["scale"], dense=whole["codes"])

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns} {WORDS[self.dtype]} {self.pattern}"


class SlideWeight:
    """The weight of one linear: scale [N, 1], and codes from the form they lie in, converted where they are."""

    def __init__(
        self, spec: SlideSpec, scale: Tensor, *, dense: Tensor | None = None, slid: Tensor | None = None
    ) -> None:
        self.spec, self.scale = spec, scale
        self._dense, self._slid = dense, slid

    @property
    def dense(self) -> Tensor:
        """Codes [N, K]. ValueError if the slid weight is none."""
        if self._dense is None:
            assert self._slid is not None
            self._dense = unslide(self._slid, self.spec.columns, self.spec.length)
        return self._dense

    @property
    def slid(self) -> Tensor:
        """Codes [N, K']. ValueError if a block has more non-zeros than its windows hold."""
        if self._slid is None:
            assert self._dense is not None
            self._slid = slide(self._dense, self.spec.length)
        return self._slid

    def named(self) -> dict[str, Tensor]:
        scale = {"weight_scale": self.scale}
        if self.spec.layout == "dense":
            return {"weight": self.dense, **scale}
        values, meta = pack(self.slid)
        return {"weight_packed": values, "weight_meta": meta, **scale}
