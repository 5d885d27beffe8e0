"""What a backend is: one way to run a quantized linear. And what it is given: the linear's shape, and its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..windows import pack, slid_columns, slide, unpack, unslide


@dataclass(frozen=True)
class LinearSpec:
    """A quantized linear without its weights: N, K, L of 2:L (None for 2:inf), and the dtype of its codes."""

    rows: int
    columns: int
    length: int | None
    dtype: torch.dtype

    @property
    def slid(self) -> int:
        """K', the columns of the slid weight."""
        return slid_columns(self.columns, self.length)

    def __str__(self) -> str:
        number = "int8" if self.dtype == torch.int8 else "fp8"
        return f"{self.rows}x{self.columns} {number} 2:{self.length or 'inf'}"


class Codes:
    """The codes of one linear, from whichever form they lie in, converted where they are."""

    def __init__(self, spec: LinearSpec, *, dense: Tensor | None = None, slid: Tensor | None = None) -> None:
        self.spec = spec
        self._dense, self._slid = dense, slid

    @classmethod
    def packed(cls, spec: LinearSpec, values: Tensor, meta: Tensor) -> Codes:
        """From the slide layout. ValueError if the metadata is damaged."""
        return cls(spec, slid=unpack(values, meta))

    @property
    def dense(self) -> Tensor:
        """[N, K]. ValueError if the slid weight is none."""
        if self._dense is None:
            assert self._slid is not None
            self._dense = unslide(self._slid, self.spec.columns, self.spec.length)
        return self._dense

    @property
    def slid(self) -> Tensor:
        """[N, K']. ValueError if a group has more non-zeros than its windows hold."""
        if self._slid is None:
            assert self._dense is not None
            self._slid = slide(self._dense, self.spec.length)
        return self._slid

    def pack(self) -> tuple[Tensor, Tensor]:
        """values [N, K'/2], meta [N, K'/8]: the slide layout."""
        return pack(self.slid)


class Backend:
    """One way to run linears of one shape on one device. Holds no weights: the operand is passed to every call."""

    name = ""

    def __init__(self, spec: LinearSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device

    @classmethod
    def refusal(cls, spec: LinearSpec, device: torch.device) -> str:
        """Why this backend cannot run such a linear there; "" if it can."""
        raise NotImplementedError

    def prepare(self, codes: Codes) -> Tensor:
        """The operand, on `device`, as bytes (uint8 or int8), so that casting a model leaves it alone."""
        raise NotImplementedError

    def codes(self, operand: Tensor) -> Codes:
        """The codes that `prepare` was given, exactly."""
        raise NotImplementedError

    def __call__(self, x: Tensor, operand: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] float16, bfloat16 or float32; weight_scale [N] or [N, 1] float32; bias [N] -> [..., N] like x."""
        raise NotImplementedError
