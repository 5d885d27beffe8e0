"""Producers of quantized activations, the specification: the operations of the unfused model, then quantization.

Every operation rounds to the dtype of the activations where the modules of transformers round: the sum, the
activation, its product with the other input, the normalized value before and after its weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

from ..operand import Operand
from ..quantize.reference import quantize

SAME, SUM, SILU, RELU2 = ELEMENTS = ("same", "sum", "silu", "relu2")


@dataclass(frozen=True)
class Producer:
    """What is computed from x, another input of its shape, and the weight of a norm.

    element: x (same), x + other (sum), silu(x) * other, or relu(x)**2 * other (relu2). eps: of the RMSNorm over it;
    None for no norm. ValueError for an unknown element, and for a sum without a norm.
    """

    element: str
    eps: float | None = None
    text: str = field(init=False, compare=False, repr=False)
    """What `parse` reads. A field: torch.compile would take the number in it for a variable."""

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS or (self.element == SUM and self.eps is None):
            raise ValueError(f"no producer of {self.element!r} with eps {self.eps} (elements: {', '.join(ELEMENTS)})")
        object.__setattr__(self, "text", self.element if self.eps is None else f"{self.element} {self.eps!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The producer whose `text` this is."""
        element, *eps = text.split()
        return cls(element, *map(float, eps))


def values(producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x, other [..., K], weight [K], all of one dtype -> what is quantized [..., K]; and the sum, for the element sum.

    other: None for the element same. weight: None without a norm.
    """
    total = None
    if producer.element != SAME:
        assert other is not None
        x = _element(producer.element, x, other)
        total = x if producer.element == SUM else None
    if producer.eps is not None:
        assert weight is not None
        floats = x.float()
        x = weight * (floats * torch.rsqrt(floats.pow(2).mean(-1, keepdim=True) + producer.eps)).to(x.dtype)
    return x, total


def produce(
    producer: Producer, x: Tensor, other: Tensor | None, weight: Tensor | None, operand: Operand, rows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, other [M, K], weight [K] as `values` takes them -> codes of the operand, scale [M, 1] float32, sum.

    rows: of the codes, at least `operand.rows(M)`; those beyond it are padding, code 0.
    """
    made, total = values(producer, x, other, weight)
    codes, scale = quantize(made, operand.dtype)
    return operand.arranged(codes, rows), scale, total


def _element(element: str, x: Tensor, other: Tensor) -> Tensor:
    if element == SUM:
        return x + other
    return (silu(x) if element == SILU else torch.square(relu(x))) * other
